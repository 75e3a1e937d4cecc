"""The paper's recipe at 12 × 768: seven rounds on OpenWebText with GPT-2's vocabulary.

The text is the corpus `openwebtext`: the files in $SDTT_JAX_CORPORA/openwebtext/train/, what TFDS has
prepared, or the model hub's copy. --config.data.corpus=DIR takes other .txt, .jsonl or .parquet files.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import settings
from experiments.distillers import DistillStage
from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.networks import CausalConfig, DenoiserConfig
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig

SIZES: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "medium": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16},
    "large": {"num_layers": 24, "embed_dim": 1536, "num_heads": 16},
}


def get_config() -> ConfigDict:
    return settings.config_dict(owt("small"))


def owt(size: str) -> settings.RunConfig:
    """The paper's run at one of `SIZES`."""
    pretraining = TrainConfig(
        num_steps=1_000_000,
        batch_size=512,
        # MDLM's recipe (arXiv 2406.07524): AdamW 3e-4 after 2500 steps.
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2500),
        ema_decay=0.9999,
        log_every=100,
        save_every=10_000,
    )
    return settings.RunConfig(
        data=DataConfig(
            corpus="openwebtext", length=1024, wrap=True, validation_fraction=0.01, num_shards=256
        ),
        tokenizer=TokenizerConfig(kind="gpt2"),
        model=DenoiserConfig(**SIZES[size], compute_dtype="bfloat16"),
        teacher=settings.TeacherConfig(train=pretraining),
        judge=settings.JudgeConfig(
            model=CausalConfig(**SIZES[size], compute_dtype="bfloat16"), train=pretraining
        ),
        distill=DistillStage(),
        evaluation=settings.EvaluationConfig(
            num_texts=1024,
            batch_size=32,
            num_steps=(8, 16, 32, 64, 128, 256, 512, 1024),
            gain_sequences=128,
        ),
    )
