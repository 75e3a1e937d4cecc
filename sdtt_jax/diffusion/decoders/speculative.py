"""Speculative decoding: the model drafts some tokens in one call, a helper verifies them in another.

The draft is drawn token by token from the model's own distributions q. One call of the helper gives p, its
distribution at each position after the draft's tokens before it. A token y is kept with probability
`min(1, p(y) / q(y))`. The first that is refused is drawn again from `max(p - q, 0)`, and the rest is masked
again (arXiv 2211.17192). So the text is distributed as if the helper wrote it token by token.

A causal helper sees all the draft's prefixes at once and writes from left to right (arXiv 2408.05636). A
denoiser is shown the prefixes as a batch, each with the rest masked, in a random order.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import whole, within
from sdtt_jax.diffusion.calls import rank
from sdtt_jax.diffusion.decoders.base import Helper, Memory, Now, Scene, sigma_of_share
from sdtt_jax.ops.categorical import draw, filter_logits, nearest
from sdtt_jax.ops.sequences import preceded
from sdtt_jax.typing import Key, LogProbs, Positions, Tokens


@dataclasses.dataclass(frozen=True)
class Speculative:
    """What the model drafts and the helper verifies."""

    window: int = 4  # tokens of a draft
    # How much probability, in total variation, a drafted token may borrow from its nearest neighbours
    # (LANTERN, arXiv 2410.03355, its delta); 0 samples the helper's distribution exactly.
    relaxation: float = 0.0

    def __post_init__(self) -> None:
        whole(1, self, "window")
        within("[0, 1)", self, "relaxation")


def speculate(
    options: Speculative, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: a draft and its verification, two calls, which reveal 1 to `window` tokens."""
    diffusion, helper = scene.diffusion, scene.other
    masked, keys = now.x == diffusion.mask_id, jax.random.split(key, 4)
    if helper.bos_id is None:
        score = jax.random.uniform(keys[0], now.x.shape, jnp.float32)
    else:
        score = jnp.broadcast_to(-jnp.arange(now.x.shape[1], dtype=jnp.float32), now.x.shape)
    place = jnp.where(masked, rank(score, masked), now.x.shape[1])
    window = jnp.argsort(place, axis=-1)[:, : options.window]
    due = jnp.take_along_axis(masked, window, axis=1)

    hidden = diffusion.hidden(scene.params, now.x, now.sigma(scene))
    q = _log_probs(scene, diffusion.denoiser, scene.params, _at(hidden, window))
    drafted = draw(keys[1], q)
    rows = jnp.arange(len(now.x))[:, None]
    kept = jnp.where(due, drafted, jnp.take_along_axis(now.x, window, axis=1))
    draft = now.x.at[rows, window].set(kept)
    p = _verified(scene, helper, now.x, draft, place, window)
    if options.relaxation > 0:
        distance = token_distances(helper, now.x, drafted, diffusion.mask_id)
        p = relaxed(p, drafted, distance, options.relaxation)

    ratio = jnp.exp(_of(p, drafted) - _of(q, drafted))
    accepted = due & (jax.random.uniform(keys[2], drafted.shape, jnp.float32) < ratio)
    count = jnp.cumprod(accepted, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)
    first = jnp.minimum(count, window.shape[1] - 1)[:, None]
    p_first, q_first = (jnp.take_along_axis(x, first[..., None], axis=1)[:, 0] for x in (p, q))
    redrawn = draw(keys[3], residual(p_first, q_first))
    refused = jnp.take_along_axis(due & ~accepted, first, axis=1)[:, 0]
    x = jnp.where(place < count[:, None], draft, now.x)
    x = jnp.where(refused[:, None] & (place == first), redrawn[:, None], x)
    return x, jnp.int32(2), now.memory


def residual(p: LogProbs, q: LogProbs) -> LogProbs:
    """Logs of a refused token's replacement probabilities, unnormalised: `max(p - q, 0)`, or p if p = q."""
    left = jnp.maximum(jnp.exp(p) - jnp.exp(q), 0.0)
    return jnp.where(left.sum(axis=-1, keepdims=True) > 0, jnp.log(jnp.maximum(left, 1e-37)), p)


def relaxed(p: LogProbs, drafted: Tokens, distance: jax.Array, budget: float) -> LogProbs:
    """p with the probability of a drafted token's nearest neighbours moved to it (arXiv 2410.03355, eq. 4).

    Neighbours are taken in the order of distance as long as their total probability is at most `budget`,
    which then bounds the total variation between p and the result.

    Args:
      p: `[..., vocab]`.
      drafted: `[...]` int32.
      distance: `[..., vocab]` float32, from each token to the drafted one.
      budget: in [0, 1).
    """
    probs, own = jnp.exp(p), jax.nn.one_hot(drafted, p.shape[-1], dtype=p.dtype)
    lent = nearest(distance, jnp.where(own > 0, 0.0, probs), budget) & (own == 0)
    moved = jnp.where(lent, probs, 0.0).sum(axis=-1, keepdims=True)
    return jnp.log(jnp.maximum(jnp.where(lent, 0.0, probs) + own * moved, 1e-37))


def token_distances(helper: Helper, x: Tokens, drafted: Tokens, size: int) -> jax.Array:
    """Squared distances of all columns of the helper's last linear map to those of `drafted: [...]`.

    The columns are the map's values at unit vectors minus its value at zero. `x: [batch, length]` is any
    input of the network, `size` the size of the vocabulary.
    """
    network, head = helper.network, helper.network.head_params(helper.params)
    shape = jax.eval_shape(network.hidden, helper.params, x)
    unit = jnp.eye(shape.shape[-1], dtype=shape.dtype)
    columns = (network.logits(head, unit) - network.logits(head, 0 * unit[:1])).T[:size]
    norms = jnp.square(columns).sum(axis=-1)
    return norms + norms[drafted][..., None] - 2 * columns[drafted] @ columns.T


def _verified(
    scene: Scene, helper: Helper, x: Tokens, draft: Tokens, place: jax.Array, window: jax.Array
) -> LogProbs:
    """The helper's log-probabilities in the window, each after the draft before it: `[batch, n, vocab]`."""
    batch, size = window.shape
    if helper.bos_id is not None:
        seen = preceded(draft, helper.bos_id)
        # MASK occurs only after the positions that are read, but it must be a token that the network knows.
        seen = jnp.where(seen < scene.diffusion.mask_id, seen, 0)
        hidden = helper.network.hidden(helper.params, seen)
        return _log_probs(scene, helper.network, helper.params, _at(hidden, window))
    prefix = place[:, None, :] < jnp.arange(size, dtype=jnp.int32)[:, None]
    contexts = jnp.where(prefix, draft[:, None], x[:, None])
    left = (contexts == scene.diffusion.mask_id).mean(axis=-1, dtype=jnp.float32)
    sigma = sigma_of_share(scene.diffusion.schedule, left)
    hidden = helper.network.hidden(helper.params, contexts.reshape(-1, x.shape[1]), sigma.ravel())
    rows = _at(hidden, window.reshape(-1, 1)).reshape(batch, size, -1)
    return _log_probs(scene, helper.network, helper.params, rows)


def _log_probs(scene: Scene, network: Any, params: Any, hidden: jax.Array) -> LogProbs:
    logits = network.logits(network.head_params(params), hidden)[..., : scene.diffusion.mask_id]
    return jax.nn.log_softmax(filter_logits(logits, scene.filters))


def _at(values: jax.Array, window: Positions) -> jax.Array:
    return jnp.take_along_axis(values, window[..., None], axis=1)


def _of(log_probs: LogProbs, tokens: Tokens) -> jax.Array:
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
