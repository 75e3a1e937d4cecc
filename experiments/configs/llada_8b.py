"""SDTT of LLaDA-8B by adapters on a single bfloat16 copy of it: seven rounds on OpenWebText in its tokens.

The teacher is the published denoiser, unchanged. `--config.distill.lora.rank=0` trains all parameters.
Which mesh and batch fit which slice, and which mesh suits each stage: docs/measurements/ahead.md. On a v5p
`--config.model.remat=dots` is a sixth faster.
"""

from ml_collections import ConfigDict

from experiments.configs.owt_small import owt
from experiments.distillers import DistillStage
from experiments.settings import RunConfig, TeacherConfig, config_dict
from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.networks import DenoiserConfig
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
    return config_dict(of_published("GSAI-ML/LLaDA-8B-Base"))


def of_published(name: str) -> RunConfig:
    """The paper's rounds with a published denoiser of the Llama family, a repository or path, as teacher."""
    paper = owt("small")
    lora = LoraConfig(rank=32, alpha=64.0, base_dtype="bfloat16")
    adam = OptimizerConfig(name="adam", learning_rate=1e-4, warmup_steps=100)
    return RunConfig(
        data=DataConfig(
            corpus="openwebtext", length=1024, validation_fraction=0.01, num_shards=256
        ),
        tokenizer=TokenizerConfig(kind="hub"),
        # Says only how the published network is computed.
        model=DenoiserConfig(compute_dtype="bfloat16", remat="full"),
        teacher=TeacherConfig(checkpoint=name),
        judge=paper.judge,
        distill=DistillStage(
            lora=lora,
            train=TrainConfig(
                num_steps=2000, batch_size=64, optimizer=adam, ema_decay=0.999, save_every=200
            ),
        ),
        evaluation=paper.evaluation,
    )
