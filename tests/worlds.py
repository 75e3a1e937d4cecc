"""Denoisers small enough to enumerate, for tests that compare with exact sums.

`TableDenoiser` is a stand-in with the two functions of the real one: its predictions are a table over
all partly masked sequences, looked up by number (base V + 1, first position most significant, digit V
is MASK). `predictions` gives the table of any denoiser, the real network included.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.schedule import Schedule, make_schedule
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.config import DenoiserConfig, LlamaDenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.networks.llama import LlamaDenoiser

VOCAB, LENGTH = 3, 3
MASK = VOCAB


@dataclasses.dataclass(frozen=True)
class TableDenoiser:
    """Log-probabilities `params["table"]: [states, LENGTH, VOCAB]` behind `hidden` and `logits`.

    Attributes:
      padded_vocab: columns of the logits; those beyond MASK are impossible.
      mask_logit: the logit of MASK itself; SUBS must ignore it.
      time_scale: logits are multiplied by `1 + time_scale * sigma`, so that the time that a caller
        passes shows.
      on_call: called on the host at every network call.
    """

    padded_vocab: int = 8
    mask_logit: float = 2.0
    time_scale: float = 0.0
    on_call: Callable[[], None] | None = None

    @property
    def mask_id(self) -> int:
        return MASK

    @property
    def config(self) -> DenoiserConfig:
        return DenoiserConfig(vocab_size=VOCAB, length=LENGTH)

    def hidden(self, params: Any, tokens: jax.Array, sigma: jax.Array | None = None) -> jax.Array:
        if self.on_call is not None:
            jax.debug.callback(self.on_call)
        rows = params["table"][numbers(tokens)]
        if sigma is not None and self.time_scale:
            rows = rows * (1 + self.time_scale * sigma)[:, None, None]
        return rows

    def head_params(self, params: Any) -> Any:
        del params
        return {}

    def logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        del params
        widths = [(0, 0)] * (hidden.ndim - 1)
        with_mask = jnp.pad(hidden, [*widths, (0, 1)], constant_values=self.mask_logit)
        padding = self.padded_vocab - VOCAB - 1
        return jnp.pad(with_mask, [*widths, (0, padding)], constant_values=-1e6)


def numbers(tokens: jax.Array) -> jax.Array:
    """`[..., LENGTH]` -> `[...]` int32."""
    return (tokens * jnp.asarray((VOCAB + 1) ** np.arange(LENGTH - 1, -1, -1))).sum(axis=-1)


def all_states() -> np.ndarray:
    """`[(VOCAB + 1)^LENGTH, LENGTH]` int32, in the order of their numbers."""
    return np.array(list(itertools.product(range(VOCAB + 1), repeat=LENGTH)), np.int32)


def random_table(seed: int, spread: float = 1.2) -> dict[str, jax.Array]:
    """A table without structure: every prediction is drawn by itself."""
    rng = np.random.default_rng(seed)
    table = spread * rng.standard_normal(((VOCAB + 1) ** LENGTH, LENGTH, VOCAB))
    return {"table": jax.device_put(table.astype(np.float32))}


def tiny_network(*, time_conditioned: bool = False) -> Denoiser:
    """The real network, at sizes for which all of its predictions are cheap."""
    return Denoiser(
        DenoiserConfig(
            vocab_size=VOCAB,
            length=LENGTH,
            num_layers=2,
            embed_dim=16,
            num_heads=2,
            cond_dim=8,
            time_conditioned=time_conditioned,
        )
    )


def small_llama(vocab_size: int, length: int, **fields: Any) -> LlamaDenoiser:
    """A denoiser of the Llama family of width 16, two heads to each key head; `fields` of its config."""
    sizes = {"embed_dim": 16, "num_heads": 4, "num_kv_heads": 2}
    return LlamaDenoiser(LlamaDenoiserConfig(vocab_size, length=length, **sizes, **fields))


def noisy_params(model: Any, seed: int, spread: float = 0.25) -> Any:
    """Random parameters of any network, unlike its initial ones, in which adaLN and the head are zero.

    Normal numbers on every leaf, around one for the scales of norms; made by NumPy, so that nothing is
    compiled. At the default spread the tiny network has opinions and doubts; at 0.5 it is certain of
    everything, and draws from it would test nothing.

    The numbers are made when they are first asked for, and kept: tracing a network's shapes takes 0.2 s, so a
    module of tests has `PARAMS = functools.partial(noisy_params, …)`, not the parameters, which each process
    would make only to collect the tests.
    """
    found = _noisy_numbers(model, seed, spread)
    # Fresh arrays, which a training may take over; they are arrays also where this is called within a trace.
    with jax.ensure_compile_time_eval():
        # `jnp.asarray` would compile a program for each shape.
        return jax.tree.map(lambda leaf: jax.device_put(leaf.copy()), found)


@functools.cache
def _noisy_numbers(model: Any, seed: int, spread: float) -> Any:
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + spread * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract_params(model)))


def as_model(denoiser: Any, params: Any, schedule: Schedule | None = None) -> Model:
    """A denoiser as the model that a user would hold, without a tokenizer."""
    return Model(
        params=params,
        tokenizer=None,
        facts={"path": "a denoiser of the tests", "kind": "denoiser"},
        denoiser=denoiser,
        schedule=schedule or make_schedule(),
    )


def as_causal(network: Any, params: Any, tokenizer: Any = None) -> CausalModel:
    """A causal network as the model that a user would hold."""
    facts = {"path": "a causal network of the tests", "kind": "autoregressive"}
    return CausalModel(params=params, tokenizer=tokenizer, facts=facts, network=network)


def predictions(denoiser: Any, params: Any, sigma: float = 0.0) -> np.ndarray:
    """p(x0 = v at a position | state) of the raw logits, MASK left out: `[states, LENGTH, VOCAB]`."""
    states = all_states()
    raw = _raw_logits(denoiser, params, states, np.full(len(states), sigma, np.float32))
    logits = np.asarray(raw, np.float64)[..., :VOCAB]
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="denoiser")
def _raw_logits(denoiser: Any, params: Any, tokens: jax.Array, sigma: jax.Array) -> jax.Array:
    return denoiser.logits(params, denoiser.hidden(params, tokens, sigma))


def reveals(
    state: tuple[int, ...], probabilities: np.ndarray, chance: float
) -> dict[tuple[int, ...], float]:
    """One reverse step from `state`, by brute force: next state -> probability.

    Sums over every subset of the masked positions and every choice of tokens.

    Args:
      state: tokens, MASK included.
      probabilities: `[LENGTH, VOCAB]`, the predictions at `state`.
      chance: the probability that a masked position is revealed.
    """
    masked = [i for i, token in enumerate(state) if token == MASK]
    result: dict[tuple[int, ...], float] = {}
    for count in range(len(masked) + 1):
        for chosen in itertools.combinations(masked, count):
            weight = chance**count * (1 - chance) ** (len(masked) - count)
            for tokens in itertools.product(range(VOCAB), repeat=count):
                after, value = list(state), weight
                for position, token in zip(chosen, tokens, strict=True):
                    after[position] = token
                    value *= probabilities[position, token]
                result[tuple(after)] = result.get(tuple(after), 0.0) + value
    return result


def draw_each(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws a token for every position of `logits: [batch, length, vocab]` as the sampler does: each position
    with the key of its place in the batch."""
    rows = logits.reshape(-1, logits.shape[-1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(rows)))
    tokens = jax.vmap(lambda k, row: jax.random.categorical(k, row, mode="high"))(keys, rows)
    return tokens.reshape(logits.shape[:-1])
