"""5 to 18 minutes on two cores: the World English Bible in 27 characters, in few steps."""

from ml_collections import ConfigDict

from experiments import settings
from experiments.distillers import CoupledIdlmStage, CoupledStage, DistillStage
from sdtt_jax.data import DataConfig, TokenizerConfig
from sdtt_jax.networks import CausalConfig, DenoiserConfig
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig


def muon(learning_rate: float, adam_learning_rate: float) -> OptimizerConfig:
    """Muon for the blocks' matrices, Adam for the rest, linear decay to zero."""
    return OptimizerConfig(
        name="muon",
        learning_rate=learning_rate,
        adam_learning_rate=adam_learning_rate,
        schedule="linear",
        warmup_steps=10,
        b2=0.99,
    )


def adam(learning_rate: float) -> OptimizerConfig:
    """Adam with linear decay to zero."""
    return OptimizerConfig(
        name="adam", learning_rate=learning_rate, schedule="linear", warmup_steps=10, b2=0.99
    )


def get_config() -> ConfigDict:
    return settings.config_dict(demo())


def demo() -> settings.RunConfig:
    """The run that `launch/demo.sh` makes."""
    return settings.RunConfig(
        data=DataConfig(normalize="text8", length=64),
        tokenizer=TokenizerConfig(model_type="char", vocab_size=64),
        model=DenoiserConfig(num_layers=4, embed_dim=128, num_heads=4),
        teacher=settings.TeacherConfig(
            weighting="even",
            # Nearly as good as 420 steps of 64 texts, in a quarter less time: docs/measurements/speed.md.
            train=TrainConfig(
                num_steps=560, batch_size=32, optimizer=muon(0.01, 3e-3), save_every=140
            ),
        ),
        judge=settings.JudgeConfig(
            model=CausalConfig(num_layers=3, embed_dim=128, num_heads=4),
            train=TrainConfig(
                num_steps=280, batch_size=32, optimizer=muon(0.01, 3e-3), save_every=100
            ),
        ),
        # Few and large rounds, because a small teacher has little to give in each. With many trajectories per
        # text and a low, decaying rate, so few steps remove more noise than they add:
        # docs/measurements/speed.md.
        distill=DistillStage(
            num_rounds=2,
            num_distill_steps=2,
            teacher_num_steps=8,
            num_trajectories=8,
            use_ema_on_growth=False,
            train=TrainConfig(
                num_steps=120, batch_size=32, optimizer=adam(3e-4), log_every=5, save_every=40
            ),
        ),
        # One-shot and in hindsight: the student sees the noise from which the teacher would have written a
        # real text in eight calls, and learns the text. From the teacher's own texts it learns less:
        # docs/measurements/few_calls.md.
        distillers=("sdtt", "coupled", "coupled_idlm"),
        coupled=CoupledStage(
            num_calls=8,
            hindsight=True,
            num_trajectories=2560,
            calls=(1, 2, 4),
            train=TrainConfig(
                num_steps=240, batch_size=64, optimizer=muon(0.01, 3e-3), save_every=80
            ),
        ),
        # At three times this learning rate the student loses variety: entropy 2.48 where real text has 2.62.
        # The temperature makes up for what it loses at this rate: docs/measurements/few_calls.md.
        coupled_idlm=CoupledIdlmStage(
            teacher_temperature=1.1,
            train=TrainConfig(num_steps=200, batch_size=32, optimizer=adam(1e-4), save_every=100),
        ),
        evaluation=settings.EvaluationConfig(
            num_texts=512, num_steps=(4, 8, 16), validation_sequences=1024, gain_sequences=64
        ),
    )
