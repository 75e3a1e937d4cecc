"""What an evaluation is asked for: every field a flag of `experiments.evaluate`."""

import dataclasses
import math

from sdtt_jax.config import require
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.bounds import ESTIMATORS

SUITES = ("generation", "likelihood", "latency", "judge", "lambada")
FIRST_TOKEN = ("scored", "given")
ENDS = ("keep", "cut")
PRECISIONS = ("", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but the models.

    Attributes:
      seed: of keys, resampling and clustering.
      batch_size: texts at once; part of what determines the draws.
      precision, judge_precision: of the activations; "" is what the model was trained with.
      num_steps: sampling steps, each an item.
      num_texts: texts of each item.
      length: tokens of a text; 0 is the model's own.
      mode, time_grid, temperature, top_k, top_p: of the sampler; the last three also of causal models.
      prompts: a file of JSON lines whose beginnings are the prompts; "" takes them from held-out text.
      num_prompts: prompts to continue; 0 is all of the file's, and no prompted set-up without a file.
      prompt_tokens, continuation_tokens, continuations: of the prompted set-up.
      held_out: where real text comes from: "" is the run's own validation split; a file or folder; or a
        named set.
      held_out_folder: holds the named set's files; "" takes the hub's copy.
      wrap: sequences of a file are [BOS] text [EOS], as published models were trained.
      held_out_texts: sequences of it at most; 0 is all.
      estimators: of the likelihood bound.
      num_maskings: per text and estimator.
      first_token: "scored" after BOS, or "given", as the reference code has it.
      ends: "keep" scores a text whole, EOS being a token like others (packed text is so); "cut" ends it at
        its first EOS.
      latency_steps, latency_batches: what is timed.
      repeats: of each timing.
      latency_budget_s: seconds of repetitions after which a timing is content with those it has.
    """

    seed: int = 0
    batch_size: int = 32
    precision: str = ""
    judge_precision: str = ""
    num_steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    num_texts: int = 1024
    length: int = 0
    mode: str = "grid"
    time_grid: str = "uniform"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prompts: str = ""
    num_prompts: int = 0
    prompt_tokens: int = 50
    continuation_tokens: int = 50
    continuations: int = 5
    held_out: str = ""
    held_out_folder: str = ""
    wrap: bool = False
    held_out_texts: int = 1024
    estimators: tuple[str, ...] = ("antithetic", "importance", "low-variance")
    num_maskings: int = 8
    first_token: str = "scored"
    ends: str = "keep"
    latency_steps: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    latency_batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5
    latency_budget_s: float = 60.0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2**31), not {self.seed}.")
        for name in (
            "batch_size",
            "num_texts",
            "prompt_tokens",
            "continuation_tokens",
            "continuations",
            "num_maskings",
            "repeats",
        ):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("length", "num_prompts", "held_out_texts", "latency_budget_s"):
            value = getattr(self, name)
            require(
                value >= 0 and math.isfinite(value), f"{name} must not be negative, not {value}."
            )
        for name, choices in (
            ("first_token", FIRST_TOKEN),
            ("ends", ENDS),
            ("precision", PRECISIONS),
            ("judge_precision", PRECISIONS),
        ):
            _choice(name, getattr(self, name), choices)
        for name in ("num_steps", "latency_steps", "latency_batches"):
            values = getattr(self, name)
            require(
                len(values) > 0 and all(value > 0 for value in values),
                f"{name} must name positive numbers, not {list(values)}.",
            )
        require(len(self.estimators) > 0, "estimators must name at least one.")
        for estimator in self.estimators:
            _choice("estimators", estimator, ESTIMATORS)
        for num_steps in self.num_steps:
            self.sampler(num_steps)

    @property
    def filters(self) -> dict[str, float]:
        """Of causal models."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    @property
    def prompted(self) -> bool:
        """Whether prompts are continued."""
        return bool(self.prompts or self.num_prompts)

    def sampler(self, num_steps: int) -> SamplerConfig:
        """The sampler at a number of steps."""
        return SamplerConfig(
            num_steps=num_steps,
            mode=self.mode,
            time_grid=self.time_grid,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    shown = ", ".join(choice for choice in choices if choice)
    require(value in choices, f"{name}={value!r} is unknown; choose one of {shown}.")
