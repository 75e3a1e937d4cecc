"""The FLOPs that a computation needs at least, from its sizes: the benchmark's roofline.

Matrix products are counted, 2 FLOPs for a multiplication with its addition: the blocks on every token, the
head only where its output is needed. A backward pass costs twice its forward pass. Small terms are left out:
norms, softmax, rotary embeddings, modulation, embedding, optimizer, and the head at the few positions that a
teacher's step reveals. `batch` counts sequences throughout.
"""

from sdtt_jax.networks.config import TransformerConfig

FORWARD_AND_BACKWARD = 3


def block_flops(config: TransformerConfig, batch: int) -> int:
    """Forward pass of all blocks: projections and MLP per token, attention per pair of tokens."""
    return matrix_flops(config, batch) + attention_flops(config, batch)


def matrix_flops(config: TransformerConfig, batch: int) -> int:
    """Forward pass of all blocks' projections and MLPs."""
    return batch * config.num_layers * config.length * 2 * config.block_weights


def attention_flops(config: TransformerConfig, batch: int) -> int:
    """Scores and weighted sums of all blocks, forward."""
    per_pair = 2 * 2 * config.num_heads * config.head_dim
    return batch * config.num_layers * config.length**2 * per_pair


def recomputed_flops(config: TransformerConfig, batch: int) -> float:
    """What the backward pass of all blocks recomputes: scores, and what `remat` does not save."""
    attention = attention_flops(config, batch)
    again = matrix_flops(config, batch) if config.remat in ("attention", "full") else 0
    # A backward pass of attention has five products of [length, length] for the forward's two.
    return again + (1.5 if config.remat == "full" else 0.5) * attention


def head_flops(config: TransformerConfig, positions: float) -> float:
    """Forward pass of the head at `positions` tokens (all sequences together), padding left out."""
    return 2 * config.embed_dim * (config.mask_id + 1) * positions


def sample_flops(config: TransformerConfig, batch: int, calls: float) -> float:
    """A generation of `calls` network calls, the first at MASK alone: every token is revealed once.

    The first call is left out: it is the same at all positions, so one of them is enough.
    """
    return (calls - 1) * block_flops(config, batch) + head_flops(config, batch * config.length)


def judge_flops(config: TransformerConfig, batch: int) -> float:
    """Scoring every token of a batch with a causal model of these sizes; no token sees later ones."""
    pairs = config.length * (config.length - 1)
    unseen = config.num_layers * 2 * config.num_heads * config.head_dim * pairs
    whole = block_flops(config, batch) + head_flops(config, batch * config.length)
    return whole - batch * unseen


def teacher_flops(
    config: TransformerConfig, batch: int, masked: float, *, frozen: bool = False
) -> float:
    """A step on the NELBO with `masked` masked tokens: forward and backward.

    Args:
      config: sizes.
      batch: sequences.
      masked: masked tokens in the batch.
      frozen: matrices have no gradient, since adapters are trained; their own products are left out.
    """
    head = head_flops(config, masked)
    whole = FORWARD_AND_BACKWARD * (block_flops(config, batch) + head)
    return whole - (matrix_flops(config, batch) + head if frozen else 0)


def distill_flops(
    config: TransformerConfig,
    batch: int,
    masked: float,
    *,
    num_distill_steps: int,
    num_trajectories: int,
    frozen: bool = False,
) -> float:
    """A step of distillation: forward and backward of the student, and the teacher's trajectories.

    The teacher's first call serves all trajectories; each adds k - 1 more, and the head at the masked tokens.

    Args:
      config: sizes of student and teacher.
      batch: sequences.
      masked: masked tokens in the batch.
      num_distill_steps: k.
      num_trajectories: trajectories of the teacher for each sequence.
      frozen: as for `teacher_flops`.
    """
    calls = 1 + num_trajectories * (num_distill_steps - 1)
    teacher = calls * block_flops(config, batch)
    targets = num_trajectories * head_flops(config, masked)
    return teacher + targets + teacher_flops(config, batch, masked, frozen=frozen)
