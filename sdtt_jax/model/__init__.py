"""Models as users hold them: a network, its parameters and its tokenizer in one object.

It may use objectives, distillation, causal and everything below them.
"""
