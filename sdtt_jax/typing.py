"""Names for arrays and trees in signatures: what an argument is, and its shape.

They are documentation and are not checked at run time: an array of another shape passes until it meets an
operation that cannot take it. Type checkers see `jax.Array`; `jax.typing.ArrayLike` for names that end with
"Like", which may be NumPy's; and `Any` for trees.
"""

from typing import Any

from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
"""A key of `jax.random.key`."""
Keys = PRNGKeyArray
"""An array of keys."""

Tokens = Int[Array, "batch length"]
"""Ids of tokens, int32. `x_t` and `x_s` may hold MASK, `x0` does not."""
Positions = Bool[Array, "batch length"]
"""A flag for each position: masked, selected, given."""
Segments = Int[Array, "batch length"]
"""The number of the text that each position belongs to, int32: attention may be confined to one text."""
PerToken = Float[Array, "batch length"]
"""A number for each position, float32: a loss, a weight."""
PerSequence = Float[Array, "batch"]
"""A number for each sequence, float32: a time, the total noise, a NELBO."""
Scalar = Float[Array, ""]
"""One number, float32."""

TokensLike = Int[ArrayLike, "batch length"]
"""`Tokens` that may be NumPy's, of any width: they are checked and converted."""
PositionsLike = Bool[ArrayLike, "batch length"]
"""`Positions` that may be NumPy's."""
PerSequenceLike = Float[ArrayLike, "batch"]
"""`PerSequence` that may be NumPy's."""
ScalarLike = Float[ArrayLike, ""]
"""`Scalar`, or a plain number."""

Hidden = Float[Array, "batch length embed"]
"""Final hidden states of a network, in its compute dtype."""
Logits = Float[Array, "*rows vocab"]
"""Unnormalised log-probabilities, float32. The vocabulary may be padded (`DenoiserLike.padded_vocab`)."""
LogitsLike = Float[ArrayLike, "*rows vocab"]
"""`Logits` that may be NumPy's."""
LogProbs = Float[Array, "*rows vocab"]
"""Log-probabilities, float32."""

Params = Any
"""The parameters of a network: nested dicts of arrays."""
Tree = Any
"""A tree of arrays, or a tree that holds something for each leaf of such a tree."""
Json = Any
"""What `json.loads` returns."""
