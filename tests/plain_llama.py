"""A network of the Llama family in plain NumPy, float64, with loops over positions and heads: an oracle.

Weights are matrices as in the papers, `y = W x` with `W: [out, in]`, in one dict for each layer. It shares no
code with the library.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Plain:
    """The settings of a model, which its weights do not tell."""

    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float = 1e-5
    base: float = 10_000.0
    neighbours: bool = False
    turned: int | None = None
    causal: bool = True
    scaling: dict | None = None  # `rope_scaling` of a published config


def random_weights(seed, plain, *, layers, embed, mlp, rows, bias=False, qk_norm=False, tied=False):
    """Weights of a random model: `embed`, `final`, `head` (unless tied), and `layers`, a list of dicts."""
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return (rng.standard_normal(shape) * 0.6 / np.sqrt(shape[-1])).astype(np.float32)

    def scale(size):
        return (1 + 0.2 * rng.standard_normal(size)).astype(np.float32)

    width, kv_width = plain.heads * plain.head_dim, plain.kv_heads * plain.head_dim
    blocks = []
    for _ in range(layers):
        block = {
            "norm1": scale(embed),
            "q": matrix(width, embed),
            "k": matrix(kv_width, embed),
            "v": matrix(kv_width, embed),
            "o": matrix(embed, width),
            "norm2": scale(embed),
            "gate": matrix(mlp, embed),
            "up": matrix(mlp, embed),
            "down": matrix(embed, mlp),
        }
        if bias:
            block |= {f"{name}_bias": matrix(len(block[name])) * 3 for name in "qkv"}
        if qk_norm:
            block |= {"q_norm": scale(plain.head_dim), "k_norm": scale(plain.head_dim)}
        blocks.append(block)
    weights = {"embed": 2 * matrix(rows, embed), "final": scale(embed), "layers": blocks}
    return weights if tied else weights | {"head": 2 * matrix(rows, embed)}


def hidden(weights, plain, tokens):
    """`[length]` ids → final states `[length, embed]` float64."""
    x = weights["embed"].astype(np.float64)[np.asarray(tokens)]
    for block in weights["layers"]:
        x = x + _attention(block, plain, _norm(x, block["norm1"], plain.epsilon))
        y = _norm(x, block["norm2"], plain.epsilon)
        gate = y @ block["gate"].T.astype(np.float64)
        inner = gate / (1 + np.exp(-gate)) * (y @ block["up"].T)
        x = x + inner @ block["down"].T
    return _norm(x, weights["final"], plain.epsilon)


def logits(weights, plain, tokens):
    """`[length]` ids → `[length, rows]` float64."""
    head = weights.get("head", weights["embed"])
    return hidden(weights, plain, tokens) @ head.T.astype(np.float64)


def _norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def slowed(frequency, scaling):
    """A rotary frequency after scaling, in radians per position; by wavelength, as Llama 3.1 describes it."""
    if scaling is None:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    length, wavelength = scaling["original_max_position_embeddings"], 2 * math.pi / frequency
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / scaling["factor"]
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling["factor"] + smooth * frequency


def _turn(x, position, plain):
    """One head's vector `[head_dim]`, rotated to a position."""
    x, size = x.copy(), plain.head_dim if plain.turned is None else plain.turned
    for i in range(size // 2):
        angle = position * slowed(plain.base ** (-2 * i / size), plain.scaling)
        a, b = (2 * i, 2 * i + 1) if plain.neighbours else (i, i + size // 2)
        x[a], x[b] = (
            x[a] * np.cos(angle) - x[b] * np.sin(angle),
            x[b] * np.cos(angle) + x[a] * np.sin(angle),
        )
    return x


def _attention(block, plain, x):
    length, size = len(x), plain.head_dim

    def heads(name, count):
        y = x @ block[name].T.astype(np.float64) + block.get(f"{name}_bias", 0.0)
        return y.reshape(length, count, size)

    query, key = heads("q", plain.heads), heads("k", plain.kv_heads)
    value = heads("v", plain.kv_heads)
    if "q_norm" in block:
        query = _norm(query, block["q_norm"], plain.epsilon)
        key = _norm(key, block["k_norm"], plain.epsilon)
    for array in (query, key):
        for position in range(length):
            for head in range(array.shape[1]):
                array[position, head] = _turn(array[position, head], position, plain)
    mixed = np.zeros((length, plain.heads, size))
    for i in range(length):
        seen = i + 1 if plain.causal else length
        for head in range(plain.heads):
            served = head // (plain.heads // plain.kv_heads)
            scores = key[:seen, served] @ query[i, head] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[i, head] = weights / weights.sum() @ value[:seen, served]
    return mixed.reshape(length, -1) @ block["o"].T
