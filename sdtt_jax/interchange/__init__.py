"""Published checkpoints in, checkpoints out."""
