"""The commands: each turns flags into calls of the library.

They may use `sdtt_jax`; nothing there imports them.
"""
