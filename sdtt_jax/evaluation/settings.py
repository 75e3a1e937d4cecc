"""The settings of an evaluation: every field is a flag of `experiments.evaluate`, with its help."""

import dataclasses
from typing import Any

from sdtt_jax.config import choose, each, one_of, positive, require, whole, within
from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.diffusion.estimators import ESTIMATORS
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.tasks import TASKS
from sdtt_jax.keys import check_seed
from sdtt_jax.networks.config import COMPUTE_DTYPES
from sdtt_jax.networks.retrieval import Retrieving

FIRST_TOKEN = ("scored", "given")
ENDS = ("keep", "cut")


# Groups of suites, for `setting(suites=…)`.
WRITING = ("generation", "frontier", "budget", "latency")
PROMPTED = ("generation", "budget")
READING = ("generation", "likelihood", "frontier", "schedule", "exits", "budget")  # held-out text
JUDGING = ("generation", "judge", "frontier", "budget")
MEASURING = (*READING, "lambada", "latency")  # the checkpoint: all but "judge"


def setting(
    default: Any, help_text: str, suites: tuple[str, ...] = (), *, denoisers: bool = False
) -> Any:
    """A field with the help of its flag, and what reads it: without that, only the default is accepted.

    Args:
      default, help_text: of the flag.
      suites: the suites of experiments.evaluate that read it; () is for all of them.
      denoisers: whether it means nothing to a causal model (`variants.variant` then refuses it).
    """
    metadata = {"help": help_text, "suites": suites, "denoisers": denoisers}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """Which tokens a call reveals, and how they are drawn, whatever the number of steps."""

    mode: str = setting(
        SamplerConfig.mode,
        f"Decoder: {', '.join(DECODERS)}. Options follow a colon, as in "
        "confidence:score=margin,threshold=0.9. speculative, staged, energy and skeleton need a --helper; "
        "learnt reads the schedule that --suite=schedule stored. See docs/guides/sample.md.",
        suites=WRITING,
        denoisers=True,
    )
    time_grid: str = setting(
        SamplerConfig.time_grid,
        "Times of the sampler: uniform or cosine; for the decoders that use them: "
        f"{', '.join(name for name, decoder in DECODERS.items() if decoder.timed)}.",
        suites=WRITING,
        denoisers=True,
    )
    temperature: float = setting(
        SamplerConfig.temperature,
        "Divides the logits; 0 is greedy.",
        suites=("generation", "budget", "latency"),
    )
    cooling: float = setting(
        SamplerConfig.cooling,
        "Lowers the temperature linearly from (1 + cooling) to (1 - cooling) times --temperature; 0: "
        "constant, as always for the causal baseline.",
        suites=WRITING,
        denoisers=True,
    )
    guidance: float = setting(
        SamplerConfig.guidance,
        "Scale of classifier-free guidance by the given text, which doubles the network calls; 0: off.",
        suites=("generation", "frontier", "budget"),
        denoisers=True,
    )
    top_k: int = setting(SamplerConfig.top_k, "Top-k filtering; 0 is off.", suites=WRITING)
    top_p: float = setting(SamplerConfig.top_p, "Nucleus filtering; 1 is off.", suites=WRITING)

    def __post_init__(self) -> None:
        self.sampler(1)

    @property
    def filters(self) -> dict[str, Any]:
        """Filters of the token distribution, which causal models take too."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def sampler(self, num_steps: int, *, given: bool = True) -> SamplerConfig:
        """The sampler at a number of steps.

        Args:
          num_steps: of the sampler.
          given: whether the texts begin with given text; without it there is no guidance.
        """
        return SamplerConfig(
            num_steps=num_steps,
            mode=self.mode,
            time_grid=self.time_grid,
            cooling=self.cooling,
            guidance=self.guidance if given else 0.0,
            **self.filters,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation:
    """Variants of a checkpoint's network (`evaluation.variants`), and how it is run."""

    seed: int = setting(0, "Equal seeds give equal texts.")
    batch_size: int = setting(
        32,
        "Texts at once; another size draws other texts. Best a multiple of the number of devices.",
        suites=("judge", *(suite for suite in MEASURING if suite != "latency")),
    )
    early_exit: float = setting(
        0.0,
        "Early exit with at most this share of most probable tokens changed, by the threshold that "
        "--suite=exits stored for this share in the checkpoint's folder; 0: off.",
        suites=MEASURING,
        denoisers=True,
    )
    neighbours: str = setting(
        "",
        "Text for nearest-neighbour retrieval (kNN-LM): own (the training split of the checkpoint's run), "
        "a file or folder, or a named set; empty: off.",
        suites=MEASURING,
        denoisers=True,
    )
    neighbour_texts: int = setting(256, "Maximum number of sequences of --neighbours to store.")
    neighbour_count: int = setting(Retrieving.neighbours, "How many nearest states are mixed in.")
    neighbour_share: float = setting(
        Retrieving.share, "Weight of the neighbours in the mixture; below 1."
    )
    neighbour_temperature: float = setting(
        Retrieving.temperature,
        "Neighbours are weighted by exp(-squared distance / temperature).",
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        whole(1, self, "batch_size", "neighbour_texts", "neighbour_count")
        positive(self, "neighbour_temperature")
        within("[0, 1)", self, "early_exit", "neighbour_share")
        for field in dataclasses.fields(Variation):
            alone = field.name.startswith("neighbour_") and not self.neighbours
            require(
                not alone or getattr(self, field.name) == field.default,
                f"--{field.name} needs --neighbours; name their text there, or leave it out.",
            )

    @property
    def varied(self) -> bool:
        """Whether any variation is wanted."""
        return bool(self.early_exit or self.neighbours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Decoding, Variation):
    """How texts are drawn, and by which variation of a network."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        Variation.__post_init__(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """All settings of an evaluation; other flags name the models."""

    compute_dtype: str = setting(
        "",
        f"Dtype in which the checkpoint and its baseline compute: {', '.join(COMPUTE_DTYPES)} (the "
        "last: bfloat16 in products only); by default that of their training.",
        suites=MEASURING,
    )
    judge_compute_dtype: str = setting(
        "",
        "Dtype in which the judge computes, as for --compute_dtype; by default that of its training.",
        suites=JUDGING,
    )
    num_steps: tuple[int, ...] = setting(
        (4, 8, 16, 32, 64),
        "Sampling steps, separated by commas.",
        suites=(*WRITING, "schedule"),
        denoisers=True,
    )
    temperatures: tuple[float, ...] = setting(
        (0.8, 0.9, 1.0, 1.1),
        "Temperatures that --suite=frontier interpolates between, separated by commas.",
        suites=("frontier",),
    )
    modes: str = setting(
        "",
        "Decoders of --suite=frontier, as for --mode, separated by spaces; by default that of --mode.",
        suites=("frontier",),
    )
    call_temperatures: bool = setting(
        True, "--suite=schedule: also learn a temperature for each call.", suites=("schedule",)
    )
    exit_bound: float = setting(
        0.05,
        "--suite=exits: accepted mean share of most probable tokens changed by early exit.",
        suites=("exits",),
    )
    exit_failure: float = setting(
        0.05,
        "--suite=exits: accepted probability that the stored threshold breaks --exit_bound, if held-out "
        "sequences are independent.",
        suites=("exits",),
    )
    exit_training_steps: int = setting(
        0,
        "--suite=exits: steps for which the exits are first trained, on the frozen network; 0: the head "
        "reads the layers' states as they are.",
        suites=("exits",),
    )
    exit_training_text: str = setting(
        "own",
        "Text that exits are trained on: own (the training split of the checkpoint's run), a file or folder, "
        "or a named set.",
        suites=("exits",),
    )
    budget_delta: float = setting(
        0.02,
        "Nats per token that --suite=budget may lose against the largest --num_steps.",
        suites=("budget",),
    )
    num_texts: int = setting(
        1024, "Texts for each number of steps.", suites=("generation", "frontier")
    )
    length: int = setting(
        0, "Tokens of a text; 0 is the model's own length.", suites=(*READING, "latency")
    )
    prompts: str = setting(
        "",
        "JSON lines of texts whose beginnings are continued; by default those of held-out text.",
        suites=PROMPTED,
    )
    num_prompts: int = setting(
        0, "Prompts to continue; 0 is all of --prompts, or none without --prompts.", suites=PROMPTED
    )
    prompt_tokens: int = setting(50, "Tokens of a prompt.", suites=PROMPTED)
    continuation_tokens: int = setting(50, "Tokens written after a prompt.", suites=PROMPTED)
    continuations: int = setting(5, "Continuations of each prompt.", suites=PROMPTED)
    held_out: str = setting(
        "",
        "Real text: a file or folder, or a named set (wikitext2, ptb, …); by default the validation split of "
        "the checkpoint's run.",
        suites=READING,
    )
    held_out_folder: str = setting(
        "",
        "Folder with the files of the named set; by default the hub's copy is used.",
        suites=READING,
    )
    wrap: bool = setting(
        False,
        "Wrap the sequences of a --held_out file in BOS and EOS (automatic for a denoiser that was "
        "trained on such ones, as published ones were).",
        suites=READING,
    )
    held_out_texts: int = setting(
        1024,
        "Maximum number of sequences of held-out text: the first of --held_out, or of a run's own split, "
        "spread evenly over it; 0 is all. Intervals count neighbouring sequences as independent.",
        suites=READING,
    )
    estimators: tuple[str, ...] = setting(
        ("antithetic", "importance", "low-variance"),
        f"Estimators of the likelihood bound, separated by commas: {', '.join(ESTIMATORS)}.",
        suites=("likelihood",),
        denoisers=True,
    )
    num_maskings: int = setting(
        8,
        "Maskings of each text for each estimator of the bound.",
        suites=("likelihood", "schedule", "lambada"),
        denoisers=True,
    )
    first_token: str = setting(
        "scored",
        "Of a causal model. scored: the first token is scored after BOS. given: it is not scored, and BOS is "
        "left out.",
        suites=(*JUDGING, "likelihood"),
    )
    ends: str = setting(
        "keep",
        "keep: score whole texts, EOS included (as in packed text). cut: end each text at its first EOS, as "
        "always for models of padded or prompted sequences.",
        suites=JUDGING,
    )
    latency_batches: tuple[int, ...] = setting(
        (1, 8, 32), "Batch sizes that are timed, separated by commas.", suites=("latency",)
    )
    repeats: int = setting(
        5, "Repetitions of each timing, after one to warm up.", suites=("latency",)
    )
    latency_budget_s: float = setting(
        60.0, "Seconds after which a timing is no longer repeated.", suites=("latency",)
    )
    texts: str = setting(
        "", "JSON lines of the texts that --suite=judge scores.", suites=("judge",)
    )
    arrays: str = setting(
        "",
        "An .npz file to which --suite=judge also writes -log p of every token, and the logits.",
        suites=("judge",),
    )
    task: str = setting(
        "lambada", f"What --suite=lambada scores: {', '.join(TASKS)}.", suites=("lambada",)
    )
    task_file: str = setting(
        "",
        "The JSONL file of --suite=lambada, with the fields of the hub's data set.",
        suites=("lambada",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, self, "num_texts", "num_maskings", "repeats")
        whole(1, self, "prompt_tokens", "continuation_tokens", "continuations")
        whole(0, self, "length", "num_prompts", "held_out_texts", "exit_training_steps")
        within("[0, inf)", self, "latency_budget_s", "budget_delta")
        dtypes = ("", *COMPUTE_DTYPES)
        one_of(self, first_token=FIRST_TOKEN, ends=ENDS, task=TASKS)
        one_of(self, compute_dtype=dtypes, judge_compute_dtype=dtypes)
        counts = ("num_steps", "latency_batches")
        for name in (*counts, "estimators", "temperatures"):
            require(len(getattr(self, name)) > 0, f"{name} must name at least one.")
        each(whole, 1, **{name: getattr(self, name) for name in counts})
        within("(0, 1)", self, "exit_bound", "exit_failure")
        require(
            bool(self.held_out) or not self.held_out_folder,
            f"--held_out_folder={self.held_out_folder} needs --held_out=NAME, a named set; give that too.",
        )
        within("(0, inf)", temperatures=min(self.temperatures))
        for mode in self.modes.split():
            try:
                dataclasses.replace(self, mode=mode, modes="")  # with the sampler's other settings
            except ConfigError as error:
                parts, said = mode.split(","), f": {error}"
                if any(part.partition(":")[0] in DECODERS for part in parts[1:]):
                    said = (
                        f"={mode}: modes are separated by spaces, as in {' '.join(parts)!r}; commas are "
                        "for the options of one mode."
                    )
                raise ConfigError(f"--modes{said}") from None
        for estimator in self.estimators:
            choose("estimators", estimator, ESTIMATORS)

    @property
    def prompted(self) -> bool:
        """Whether prompts are continued."""
        return bool(self.prompts or self.num_prompts)
