"""Entry points, which compose what `sdtt_jax` offers; nothing there imports them."""
