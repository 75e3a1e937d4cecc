"""Checks of all decoders; first memory and one step of those with a `step` of their own."""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders import Mode
from sdtt_jax.diffusion.decoders.base import Helper, Memory, Now, Scene
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Key, Tokens

HELPERS = {"causal": "causal model", "denoiser": "denoiser"}


def begin(mode: Mode, scene: Scene, x: Tokens) -> Memory:
    """A decoder's memory before the first step; `ConfigError` if model or helper do not suit the decoder."""
    decoder = mode.decoder
    require(
        decoder.step is None or scene.diffusion.arrangement is None,
        f"mode={mode} needs packed sequences, but this model's have prompts, padding or separate texts; use "
        "grid, first-hitting or confidence.",
    )
    require(
        decoder.step is None or scene.diffusion.noise_kind is None,
        f"mode={mode} makes its own network calls without noise, but this network was trained to see noise; "
        "take a decoder without such calls, such as first-hitting.",
    )
    _check_helper(mode, scene)
    if scene.helper is not None:
        own, asked = scene.helper.every, getattr(mode.options, "every", 1)
        require(
            own in (0, asked),
            f"mode={mode} asks for every n-th token with n = {asked}, but the helper was trained with n = "
            f"{own}.",
        )
    check_served(mode, scene.diffusion.denoiser, scene.num_steps, x.shape[1])
    return decoder.begin(mode.options, scene, x)


def check_served(mode: Mode, network: Any, num_steps: int, length: int) -> None:
    """Raises `ConfigError` unless a decoder can work with a network, so many calls and such a length."""
    decoder, stop = mode.decoder, mode.stop
    require(
        stop is None or max(stop.eos, stop.bos) < network.mask_id,
        f"mode={mode}: the tokens of this model are 0 to {network.mask_id - 1}; EOS must be one of them, and "
        "so must BOS.",
    )
    decoder.check(mode.options, network, num_steps, length)


def own_step(mode: Mode, scene: Scene, key: Key, now: Now) -> tuple[Tokens, jax.Array, Memory]:
    """`Decoder.step`, skipped after the last step, and where nothing is masked if the decoder `finishes`."""
    decoder, step = mode.decoder, mode.decoder.step
    assert step is not None
    masked = (now.x == scene.diffusion.mask_id).any()
    x, calls, memory = jax.lax.cond(
        (now.call < scene.num_steps) & (masked | (not decoder.finishes)),
        lambda now: vary_alike(*step(mode.options, scene, key, now)),
        lambda now: vary_alike(now.x, jnp.int32(0), now.memory),
        now,
    )
    return x, calls, memory


def ran_out(mode: Mode, num_steps: int, guidance: float, nfe: int) -> bool:
    """Whether the steps left tokens masked, which a greedy call then filled.

    Of decoders that see only at each step how much they can reveal. Those with a plan leave nothing, but for
    one position in 100,000 of `grid`.

    Args:
      mode, num_steps, guidance: of the generation.
      nfe: its network calls.
    """
    decoder, drafts = mode.decoder, mode.name == "speculative"
    each = (2 if drafts else 1) * (2 if guidance else 1)
    return (drafts or decoder.pick is not None) and nfe > num_steps * each


def check_decided(mode: Mode) -> None:
    """Raises `ConfigError` unless given noise alone determines what the decoder writes.

    Others also draw with the key: tokens of their own calls (`step`), what is masked again (`redo`), or the
    order of positions of which the network is equally sure (`pick`; all of them, where everything is MASK).
    """
    decoder = mode.decoder
    require(
        decoder.pick is None and decoder.redo is None and decoder.step is None,
        f"mode={mode} is not determined by the noise; use grid, first-hitting or learnt, or pass no noise.",
    )


def check_unasked(mode: Mode, helper: Helper | None) -> None:
    """Raises `ConfigError` if a helper is given to a decoder that uses none."""
    require(helper is None, f"mode={mode} uses no other model; leave the helper out.")


def _check_helper(mode: Mode, scene: Scene) -> None:
    kinds, helper = mode.decoder.helper, scene.helper
    if not kinds:
        check_unasked(mode, helper)
        return
    name, wanted = mode.name, " or a ".join(HELPERS[kind] for kind in kinds)
    require(helper is not None, f"mode={name} needs another model; pass a {wanted} as its helper.")
    assert helper is not None
    kind = "denoiser" if helper.bos_id is None else "causal"
    require(
        kind in kinds,
        f"mode={name} needs a {wanted}, but the helper is a {HELPERS[kind]}; give another.",
    )
    require(
        getattr(helper.network, "noise_kind", None) is None,
        f"mode={name} calls its helper without noise, but the helper was trained to see noise; give another.",
    )
    size = helper.network.mask_id if helper.bos_id is None else helper.network.config.vocab_size
    require(
        size == scene.diffusion.mask_id,
        f"The helper has a vocabulary of {size} tokens, the model of {scene.diffusion.mask_id}; they must "
        "share a tokenizer.",
    )
