"""What a causal language model is for here: the likelihood of text and sampling token by token.
It may use networks and data, never diffusion.
"""
