"""Entry points: run, sample and exact. They compose what `sdtt_jax` offers; nothing there imports them."""
