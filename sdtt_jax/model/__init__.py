"""Models as users hold them: a network, its parameters, its tokenizer and what is known of it.
It may use diffusion, causal, networks, data and parallel.
"""
