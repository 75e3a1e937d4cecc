"""Plan, then fill: a causal model writes every n-th token, and the denoiser all tokens between them.

After ARLON, arXiv 2410.20502.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import require, whole
from sdtt_jax.diffusion.decoders.base import Memory, Now, Scene, first_hitting_plan
from sdtt_jax.diffusion.decoders.filling import reveal_due
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.categorical import draw, filter_logits
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Key, PerToken, Positions, Tokens


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Which tokens the helper writes; it is a causal model of texts that consist of every n-th token."""

    # n: the helper writes positions 0, n, 2 n, … in the first step; the other steps fill the rest as
    # "first-hitting" does.
    every: int = 8

    def __post_init__(self) -> None:
        whole(2, self, "every")


def skeleton_plan(
    options: Skeleton, share: PerToken, masked: Positions, schedule: Schedule, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Decoder.plan`: the skeleton at step 0, the rest spread evenly over the other steps."""
    bones = jnp.arange(masked.shape[1]) % options.every == 0
    call, sigmas = first_hitting_plan(options, share, masked & ~bones, schedule, times[1:])
    call = jnp.where(masked & bones, 0, call + 1)
    return call, jnp.pad(sigmas, ((1, 0), (0, 0)))


def check_skeleton(options: Skeleton, network: Any, num_steps: int, length: int) -> None:
    """`Decoder.check`: a call is left for the rest, and there is a rest."""
    del network
    require(
        num_steps > 1,
        "mode=skeleton writes the plan in its first step; take num_steps of 2 or more.",
    )
    require(
        options.every <= length,
        f"mode=skeleton: every={options.every} is larger than the text's {length} tokens; take a smaller "
        "number.",
    )


def skeleton_step(
    options: Skeleton, scene: Scene, key: Key, now: Now
) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`: all calls of the helper, one for each token of the skeleton, or one of the model."""

    def plan(x: Tokens) -> tuple[Tokens, jax.Array]:
        bones, calls = _write(scene, key, x[:, :: options.every])
        return x.at[:, :: options.every].set(bones), calls

    fill = functools.partial(reveal_due, scene, key, now)
    x, calls = jax.lax.cond(now.call == 0, plan, fill, now.x)
    return x, calls, now.memory


def _write(scene: Scene, key: Key, x: Tokens) -> tuple[Tokens, jax.Array]:
    """Fills `[batch, n]` from left to right with the helper and its cache, and counts the calls.

    A call whose tokens are all given only reads them, and is not counted.
    """
    helper, mask_id = scene.other, scene.diffusion.mask_id
    assert helper.bos_id is not None
    network, head = helper.network, helper.network.head_params(helper.params)
    batch, count = x.shape

    def write(carry: tuple[Tokens, Any], place: jax.Array) -> tuple[tuple[Tokens, Any], Tokens]:
        before, cache = carry
        hidden, cache = network.decode(held, before[:, None], cache)
        logits = filter_logits(network.logits(head, hidden[:, 0])[:, :mask_id], scene.filters)
        token = draw(jax.random.fold_in(key, place), logits)
        token = jnp.where(x[:, place] == mask_id, token, x[:, place])
        return (token, cache), token

    bos = jnp.full(batch, helper.bos_id, jnp.int32)
    held = network.apart(helper.params)
    x, *begin = vary_alike(x, bos, network.init_cache(batch, count))
    _, written = jax.lax.scan(write, tuple(begin), jnp.arange(count, dtype=jnp.int32))
    return written.T, (x == mask_id).any(axis=0).sum(dtype=jnp.int32)
