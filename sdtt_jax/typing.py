"""Names for arrays and trees in signatures: what an argument is, and its shape.

They document, and nothing checks them when the code runs: an array of another shape passes until it meets an
operation that cannot take it. Type checkers see `jax.Array`, and `Any` for trees.
"""

from typing import Any

from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray

# A key of `jax.random.key`, or an array of them.
Key = PRNGKeyArray
Keys = PRNGKeyArray

# Ids of tokens, int32; `x_t` and `x_s` may hold MASK, `x0` does not.
Tokens = Int[Array, "batch length"]
# Which positions: masked, selected, given.
Positions = Bool[Array, "batch length"]
# A number for each position, float32: a loss, a weight.
PerToken = Float[Array, "batch length"]
# A number for each sequence, float32: a time, the total noise, a NELBO.
PerSequence = Float[Array, "batch"]
# One number, float32.
Scalar = Float[Array, ""]

# Final hidden states of a network, in its compute dtype.
Hidden = Float[Array, "batch length embed"]
# Unnormalised log-probabilities, float32. The vocabulary may be padded: `DenoiserLike.padded_vocab`.
Logits = Float[Array, "*rows vocab"]
# The same, normalised.
LogProbs = Float[Array, "*rows vocab"]

# The parameters of a network: nested dicts of arrays.
Params = Any
# Any tree of arrays, or of something for each of a tree's leaves.
Tree = Any
# What `json.loads` returns.
Json = Any
