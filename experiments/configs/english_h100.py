"""`english` at a useful size, for one H100: SmolLM2's 135 million parameters on TinyStories, three rounds.

All parameters are trained, on 98 million tokens as a teacher and 16 million in each round. The time and
memory of a step are in docs/measurements/ahead.md. `--config.data.corpus=world_english_bible` needs no
network, but has less than a million tokens.
"""

from ml_collections import ConfigDict

from experiments.configs.demo import adam
from experiments.configs.english import english
from experiments.settings import EvaluationConfig, RunConfig, config_dict
from sdtt_jax.config import changed
from sdtt_jax.networks import DenoiserConfig
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return config_dict(english_at_size(batch_size=64))


def english_at_size(batch_size: int) -> RunConfig:
    """The run with sequences of 512 tokens; numbers of steps are inversely proportional to the batch size."""

    def train(steps_at_64: int, learning_rate: float) -> TrainConfig:
        return TrainConfig(
            num_steps=steps_at_64 * 64 // batch_size,
            batch_size=batch_size,
            optimizer=adam(learning_rate),
            ema_decay=0.999,
            save_every=250,
        )

    return changed(
        english(),
        data={"corpus": "tinystories", "length": 512, "num_shards": 16},
        model=DenoiserConfig(compute_dtype="bfloat16", remat="full"),
        teacher={
            "lora": LoraConfig(),
            "attention_annealing": 1000 * 64 // batch_size,
            "train": train(3000, 3e-4),
        },
        distill={
            "num_rounds": 3,
            "teacher_num_steps": 128,
            "lora": LoraConfig(),
            "train": train(500, 6e-5),
        },
        evaluation=EvaluationConfig(
            num_texts=256, num_steps=(8, 16, 32, 64, 128), validation_sequences=512
        ),
    )
