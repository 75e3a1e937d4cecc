"""The parts of `experiments.evaluate`."""
