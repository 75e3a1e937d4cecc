"""Sizes and numerics of the networks."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

from sdtt_jax.config import INT32, flags, one_of, positive, require, whole, within
from sdtt_jax.networks.attention.rotary import NO_SCALING, ROTARY_BASE, RotaryScaling
from sdtt_jax.ops.noise import FULL, LATENT, MASKS, TWO_LEVEL

VOCAB_MULTIPLE = 128
NOISE_KINDS = (FULL, TWO_LEVEL, "projected", LATENT, MASKS)
ROTARY_PAIRS = ("halves", "neighbours")
REMAT_POLICIES = ("none", "dots", "attention", "full")


class Numerics(NamedTuple):
    """The dtypes that a network computes in, by their names."""

    dtype: str = "float32"  # of activations
    products: str = "float32"  # what both factors of a linear layer are rounded to


# By their names in a config. The last is JAX's `DotAlgorithmPreset.BF16_BF16_F32`, for linear layers only: a
# CPU that multiplies bfloat16 numbers takes a third of the time for these layers, and is faster in float32
# for everything between them (docs/measurements/speed.md).
NUMERICS = {
    "float32": Numerics(),
    "bfloat16": Numerics("bfloat16", "bfloat16"),
    "bf16_bf16_f32": Numerics("float32", "bfloat16"),
}
COMPUTE_DTYPES = tuple(NUMERICS)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What the denoiser and the causal transformer have in common.

    Attributes:
      vocab_size: tokens of the tokenizer, MASK not among them; `mask_id == vocab_size`. 0 until the data set
        it, as in the config of a run; a network needs it.
      length: tokens per sequence; 0 until the data set it.
      num_layers, embed_dim, num_heads: the transformer's sizes; `embed_dim` divides into heads of even size.
      mlp_ratio: width of the MLP's hidden layer over `embed_dim`.
      compute_dtype: "float32" or "bfloat16", the dtype of activations; or "bf16_bf16_f32", float32
        activations and linear layers that multiply numbers rounded to bfloat16 and add them up in float32.
        Parameters and logits are always float32.
      remat: what a block's backward pass recomputes: "none", "dots" (all but the results of the linear
        layers and of attention), "attention" (all but the results of attention) or "full" (everything). The
        measured table is docs/measurements/remat.md.
      unroll: blocks in one turn of the loop over blocks; if all of them, there is no loop. Parameters and
        values stay the same. Without a loop, training is faster on a GPU, but takes more memory and longer to
        compile (docs/measurements/gpu.md).
    """

    vocab_size: int = 0
    length: int = 0
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_ratio: int = 4
    compute_dtype: str = "float32"
    remat: str = "dots"
    unroll: int = 1

    def __post_init__(self) -> None:
        whole(0, self, "vocab_size", "length")
        whole(1, self, "num_layers", "embed_dim", "num_heads", "mlp_ratio", "unroll")
        self._check_heads()
        one_of(self, compute_dtype=COMPUTE_DTYPES, remat=REMAT_POLICIES)

    def _check_heads(self) -> None:
        require(
            self.embed_dim % (2 * self.num_heads) == 0,
            f"embed_dim={self.embed_dim} must be a multiple of 2 * num_heads={2 * self.num_heads}, because "
            "rotary embeddings turn pairs of features within a head.",
        )

    def check_filled(self) -> None:
        """Raises `ConfigError` unless vocabulary and length are set, as a network needs them."""
        positive(self, "vocab_size", "length")

    @property
    def mask_id(self) -> int:
        return self.vocab_size

    @property
    def numerics(self) -> Numerics:
        """The dtypes that `compute_dtype` names."""
        return NUMERICS[self.compute_dtype]

    @property
    def padded_vocab(self) -> int:
        """Columns of the head: the vocabulary and MASK, rounded up to a multiple of 128 (a TPU lane)."""
        return -(-(self.vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, also in a cache."""
        return self.num_heads

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices; each token is multiplied by all of them."""
        return self.embed_dim**2 * (3 + 1 + 2 * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class DenoiserConfig(TransformerConfig):
    """The masked diffusion network (DiT with adaLN).

    Attributes:
      cond_dim: width of the time embedding.
      time_conditioned: feed sigma to the network; published SDTT and MDLM models do not.
    """

    cond_dim: int = 128
    time_conditioned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, self, "cond_dim")
        flags(self, "time_conditioned")


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """How a network sees the noise of its masked positions.

    Attributes:
      kind: "full", a Gumbel number for every token; "two-level", one for every block of 128 tokens and every
        entry of a block, for large vocabularies; or "projected", a learnt projection of the softmax of the
        full noise. The other kinds draw no tokens: "latent" is one of `num_values` values for each text, and
        "masks" one for each position, as if there were that many masks.
      hidden_dim: width of the features' hidden layer.
      projection: features of the projection.
      num_values: number of values of "latent" and "masks".
    """

    kind: str = "full"
    hidden_dim: int = 256
    projection: int = 64
    num_values: int = 4

    def __post_init__(self) -> None:
        one_of(self, kind=NOISE_KINDS)
        whole(1, self, "hidden_dim", "projection")
        whole(2, self, "num_values")
        require(
            self.num_values < INT32,
            f"num_values={self.num_values} must be below 2**31, because values are stored as int32.",
        )

    @property
    def drawn(self) -> str:
        """The noise that is drawn, as `ops.noise.draw_noise` takes it."""
        if self.kind in (LATENT, MASKS):
            return f"{self.kind}:{self.num_values}"
        return TWO_LEVEL if self.kind == TWO_LEVEL else FULL


@dataclasses.dataclass(frozen=True)
class CoupledConfig(DenoiserConfig):
    """A denoiser that sees the noise of its masked positions.

    Attributes:
      noise: what it sees of the noise.
    """

    noise: NoiseConfig = NoiseConfig()

    @classmethod
    def of(cls, config: DenoiserConfig, noise: NoiseConfig) -> "CoupledConfig":
        """A denoiser's config, with noise."""
        return dataclasses.replace(of_same_size(cls, config), noise=noise)


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig(TransformerConfig):
    """What `layers.DecoderOnly` reads: blocks without modulation, causal but in `AdaptedConfig`."""

    @property
    def is_causal(self) -> bool:
        """Whether a position sees no later ones."""
        return True

    @property
    def columns(self) -> int:
        """Columns of the logits that mean something."""
        return self.vocab_size


@dataclasses.dataclass(frozen=True)
class CausalConfig(DecoderOnlyConfig):
    """The causal transformer: the denoiser's blocks with a causal mask, without modulation."""


@dataclasses.dataclass(frozen=True)
class AdaptedConfig(DecoderOnlyConfig):
    """A denoiser with a causal network's parameters; MASK has a column of its logits too.

    Attributes:
      shift: the network predicts token i at position i - 1, like the causal model that it was made from.
      causal: a position sees no later ones.
    """

    shift: bool = False
    causal: bool = False

    @property
    def is_causal(self) -> bool:
        return self.causal

    @property
    def columns(self) -> int:
        return self.vocab_size + 1


@dataclasses.dataclass(frozen=True)
class GPT2Config(DecoderOnlyConfig):
    """Sizes of a GPT-2; `length` is its number of position embeddings."""

    norm_epsilon: float = 1e-5  # epsilon of its layer norms

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "norm_epsilon")


@dataclasses.dataclass(frozen=True)
class GPT2DenoiserConfig(AdaptedConfig, GPT2Config):
    """A denoiser that was made from a GPT-2 (DiffuGPT)."""

    shift: bool = True


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderOnlyConfig):
    """A network of the Llama family (arXiv 2302.13971): Llama, SmolLM2, Qwen2, Qwen3 and their relatives.

    Attributes:
      num_kv_heads: heads of keys and values, each of which serves several query heads (arXiv 2305.13245); 0:
        as many as query heads.
      head_dim: features of a head; 0: `embed_dim / num_heads`.
      mlp_dim: width of the MLP's hidden layer; 0: `mlp_ratio * embed_dim`.
      norm_epsilon: epsilon of its RMS norms.
      rotary_base: base of the frequencies; the slowest pair of features turns by about 1 / `rotary_base`
        radians at each position.
      rotary_pairs: which features are turned together: "halves", i and i + rotary_dim / 2, or "neighbours",
        2 i and 2 i + 1 (as in GGUF files of Llama models).
      rotary_scaling: how rotations are slowed down for long texts.
      rotary_share: share of a head's features, its first ones, that are turned.
      qk_norm: an RMS norm of each head's query and key (Qwen3).
      qkv_bias: query, key and value have a bias (Qwen2).
      tied_head: the head is the token embedding.
    """

    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    norm_epsilon: float = 1e-5
    rotary_base: float = ROTARY_BASE
    rotary_scaling: RotaryScaling = NO_SCALING
    rotary_pairs: str = "halves"
    rotary_share: float = 1.0
    qk_norm: bool = False
    qkv_bias: bool = False
    tied_head: bool = False

    def __post_init__(self) -> None:
        positive(self, "norm_epsilon", "rotary_base")
        within("(0, 1]", self, "rotary_share")
        one_of(self, rotary_pairs=ROTARY_PAIRS)
        super().__post_init__()

    def _check_heads(self) -> None:
        whole(0, self, "num_kv_heads", "head_dim", "mlp_dim")
        if not self.head_dim:
            super()._check_heads()
        # Zeros are filled in, so that equal networks have equal configs.
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.embed_dim // self.num_heads)
        object.__setattr__(self, "mlp_dim", self.mlp_dim or self.mlp_ratio * self.embed_dim)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}.",
        )
        require(
            self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
            f"rotary_share={self.rotary_share} of head_dim={self.head_dim} must give an even number of "
            "features (at least 2), because rotary embeddings turn them in pairs.",
        )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """Features of a head that are turned."""
        return int(self.head_dim * self.rotary_share)

    @property
    def block_weights(self) -> int:
        heads = 2 * (self.num_heads + self.num_kv_heads)
        return self.embed_dim * (heads * self.head_dim + 3 * self.mlp_dim)


@dataclasses.dataclass(frozen=True)
class LlamaDenoiserConfig(AdaptedConfig, LlamaConfig):
    """A denoiser of the Llama family: LLaDA, Dream, or one made from a causal model."""


# Published networks that are denoisers or become denoisers.
PublishedConfig = LlamaConfig | GPT2Config


def as_denoiser(
    config: PublishedConfig, *, shift: bool, **changes: Any
) -> LlamaDenoiserConfig | GPT2DenoiserConfig:
    """The config of the denoiser made from a causal network; MASK follows its vocabulary.

    Args:
      config: config of the network; that of a denoiser keeps its kind and `shift`.
      shift: whether the denoiser keeps predicting the next token.
      **changes: fields that get other values.

    Raises:
      ConfigError: `length` exceeds the positions that a GPT-2 has embeddings for.
    """
    is_gpt2, length = isinstance(config, GPT2Config), changes.get("length", 0)
    require(
        not is_gpt2 or length <= config.length,
        f"length={length} exceeds the {config.length} positions that the network has embeddings for; reduce "
        "it.",
    )
    if isinstance(config, LlamaDenoiserConfig | GPT2DenoiserConfig):
        return dataclasses.replace(config, **changes)
    kind = GPT2DenoiserConfig if is_gpt2 else LlamaDenoiserConfig
    return kind(**vars(config) | changes, shift=shift)


Config = TypeVar("Config", bound=TransformerConfig)


def of_same_size(kind: type[Config], config: TransformerConfig) -> Config:
    """A config of another kind of network; the fields that both kinds have are those of `config`."""
    theirs = {field.name for field in dataclasses.fields(config)}
    shared = [field.name for field in dataclasses.fields(kind) if field.name in theirs]
    return kind(**{name: getattr(config, name) for name in shared})
