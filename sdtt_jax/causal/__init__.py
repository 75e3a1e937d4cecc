"""Using causal language models: the likelihood of text, and sampling token by token.

It may use networks, data and the layers below, never diffusion.
"""
