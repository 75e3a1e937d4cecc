"""What determines a run: every field of every config, with its default, in frozen dataclasses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from experiments.cli.arguments import NO_CONFIG_DICT
from experiments.cli.overrides import check_fields, settable
from experiments.distillers import (
    COUPLED_IDLM,
    DISTILLERS,
    AlphaStage,
    CoupledIdlmStage,
    CoupledStage,
    DistillStage,
    IdlmStage,
    MixtureStage,
    MmdStage,
    stage_of,
)
from sdtt_jax.config import at_least, choose, from_mapping, require, whole
from sdtt_jax.data import DataConfig, TokenizerConfig, train_tokenizer
from sdtt_jax.diffusion.nelbo import NelboConfig
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.diffusion.schedule import ScheduleConfig
from sdtt_jax.evaluation.gain import check_trajectories
from sdtt_jax.keys import check_seed
from sdtt_jax.networks import CausalConfig, DenoiserConfig
from sdtt_jax.networks.config import (
    CoupledConfig,
    GPT2DenoiserConfig,
    LlamaDenoiserConfig,
    PublishedConfig,
    as_denoiser,
)
from sdtt_jax.networks.kinds import DENOISER, KINDS, LIBRARY
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.parallel.mesh import MeshConfig
from sdtt_jax.renamed import missing_name
from sdtt_jax.training.config import TrainConfig


def __getattr__(name: str) -> None:
    raise missing_name(__name__, name)


@dataclasses.dataclass(frozen=True)
class TeacherConfig(NelboConfig):
    """The first teacher's training, with the fields of its loss, `NelboConfig`."""

    # An existing teacher (a run's directory, a path, or a repository of the model hub); none is trained then.
    checkpoint: str = ""
    # A model of the Llama family or a GPT-2, causal or a denoiser, from which training starts. The run takes
    # its network and its tokenizer too (`tokenizer.kind` is then "hub"); of `config.model` only
    # `compute_dtype`, `remat` and `unroll` count.
    init_from: str = ""
    init_layers: int = 0  # how many of that model's first blocks are taken; 0: all
    # Steps over which a causal model's attention to later positions is opened; for a denoiser 0.
    attention_annealing: int = 0
    lora: LoraConfig = LoraConfig()  # adapters, trained instead of that model's parameters
    # Steps, batch, optimizer.
    train: TrainConfig = TrainConfig(num_steps=1_000_000, batch_size=512, ema_decay=0.9999)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.init_from) or not self.lora.rank,
            f"teacher.lora.rank={self.lora.rank} adapts a model, which teacher.init_from must name.",
        )
        whole(0, self, "attention_annealing", "init_layers")
        for name in ("attention_annealing", "init_layers"):
            require(
                # A config that starts from a model may also be given a teacher in its place.
                bool(self.init_from or self.checkpoint) or not getattr(self, name),
                f"teacher.{name}={getattr(self, name)} is for a model that teacher.init_from names; leave it "
                "out.",
            )
        require(
            not self.init_from or self.attention_annealing <= self.train.num_steps,
            f"teacher.attention_annealing={self.attention_annealing} would leave attention half open after "
            f"teacher.train.num_steps={self.train.num_steps}; take {self.train.num_steps} at most.",
        )
        require(
            not (self.checkpoint and self.init_from),
            "teacher.checkpoint is taken as it is, teacher.init_from is trained further; give one of them.",
        )


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The causal model on the same tokens: baseline, and judge of generated text."""

    # An existing causal model, of any kind and with the run's tokenizer; no judge is trained then.
    checkpoint: str = ""
    model: CausalConfig = CausalConfig()  # sizes of a judge that is trained
    train: TrainConfig = TrainConfig(num_steps=1_000_000, batch_size=512)  # steps, batch, optimizer
    # n: also train a model of the same size on every n-th token, in DIR/skeleton, the helper of
    # mode=skeleton; 0: none.
    skeleton: int = 0

    def __post_init__(self) -> None:
        whole(0, self, "skeleton")
        require(self.skeleton != 1, "judge.skeleton=1 is the judge itself; take 2 or more, or 0.")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The measurements at the end of a run."""

    # Texts per model and number of steps; the first teacher and every round use the same keys.
    num_texts: int = 1024
    batch_size: int = 64  # texts generated or scored at once
    # Numbers of sampling steps, ascending; 4, 8 and 16, whose texts the report shows, are measured too.
    num_steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    time_grid: str = "uniform"  # the sampler's
    # Held-out sequences for validation perplexities (at most; 0 is all of them).
    validation_sequences: int = 2048
    gain_sequences: int = 256  # held-out sequences for `gain_share`
    # Teacher trajectories per sequence for `gain_share`, even (`GainConfig`).
    gain_trajectories: int = 64
    show_texts: int = 6  # texts per model and number of steps in the report

    def __post_init__(self) -> None:
        whole(1, self, "num_texts", "batch_size", "gain_sequences", "show_texts")
        whole(0, self, "validation_sequences")
        check_trajectories("gain_trajectories", self.gain_trajectories)
        require(len(self.num_steps) > 0, "num_steps must name at least one number of steps.")
        require(
            list(self.num_steps) == sorted(set(self.num_steps)),
            f"num_steps={self.num_steps} must ascend.",
        )
        for num_steps in self.num_steps:
            SamplerConfig(num_steps=num_steps, time_grid=self.time_grid)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: a group of fields for the data, each stage, the networks and the mesh."""

    seed: int = 0  # of everything that is drawn
    # What the stage "distill" trains: "sdtt" (with the settings `distill`), "coupled", "alpha", "mixture",
    # "mmd", "idlm" and, after "coupled", "coupled_idlm".
    distillers: tuple[str, ...] = ("sdtt",)
    # Time without a finished training step (compilation and saving included) after which a process ends,
    # with the stacks of its threads on stderr; 0 waits for ever.
    watchdog_seconds: float = 1800.0
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    # What teacher and students are: a row of `sdtt_jax.networks.kinds.KINDS`, which a config file may add,
    # or "denoiser". Its config takes from `model` the fields that it has.
    network: str = DENOISER
    model: DenoiserConfig = DenoiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    mesh: MeshConfig = MeshConfig()
    teacher: TeacherConfig = TeacherConfig()
    judge: JudgeConfig = JudgeConfig()
    distill: DistillStage = DistillStage()
    coupled: CoupledStage = CoupledStage()
    alpha: AlphaStage = AlphaStage()
    mixture: MixtureStage = MixtureStage()
    mmd: MmdStage = MmdStage()
    idlm: IdlmStage = IdlmStage()
    coupled_idlm: CoupledIdlmStage = CoupledIdlmStage()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        at_least(0, self, "watchdog_seconds")
        self._check_distillers()
        self._check_students()
        self._check_teacher()
        self._check_skeleton()
        self._check_networks()

    def _check_distillers(self) -> None:
        kind = self.data.sequences
        for name in self.distillers:
            require(
                "," not in name,
                f"distillers={name!r} is one name; give several as a tuple: "
                "--config.distillers=\"('sdtt','coupled')\".",
            )
            choose("distillers", name, DISTILLERS)
            kinds, reason = DISTILLERS[name].refused
            require(
                kind not in kinds,
                f"distillers: {name!r} cannot honour data.sequences={kind!r}, because {reason}; leave it "
                "out.",
            )
        require(
            len(set(self.distillers)) == len(self.distillers) > 0,
            "distillers must name at least one, and each only once.",
        )

    def _check_students(self) -> None:
        """Checks what each student starts from, and what its loss needs."""
        for place, name in enumerate(self.distillers):
            after = DISTILLERS[name].after
            require(
                not after or after in self.distillers[:place],
                f"distillers: {name!r} starts from the student of {after!r}; name that before it.",
            )
        require(
            COUPLED_IDLM not in self.distillers or self.coupled.determines,
            "distillers: 'coupled_idlm' starts from a student whose noise determines its tokens; set "
            'coupled.noise.kind="full", "two-level" or "projected" and coupled.independent=False.',
        )
        require(
            "mmd" not in self.distillers or self.mmd.layer <= self.model.num_layers,
            f"mmd.layer={self.mmd.layer} does not exist: model.num_layers={self.model.num_layers}.",
        )

    def _check_teacher(self) -> None:
        """Checks the teacher's settings against those of its tokenizer, its schedule and its students."""
        teacher, lora = self.teacher, self.distill.lora
        require(
            (self.tokenizer.kind == "hub") == bool(teacher.init_from or self.published),
            "tokenizer.kind='hub' and teacher.init_from go together: the tokenizer is that model's (or "
            "teacher.checkpoint's).",
        )
        require(
            not teacher.importance or bool(teacher.checkpoint) or self.schedule.can_flatten,
            "teacher.importance=True needs schedule.kind='log-linear' with schedule.eps below 0.567, or "
            f"'linear' with schedule.sigma_min above 0, not {self.schedule.kind!r}; leave it out, or take "
            "such a schedule.",
        )
        require(
            not (teacher.lora.rank and lora.rank) or teacher.lora == lora,
            "teacher.lora and distill.lora differ: students continue with the teacher's adapters, so make "
            "them equal, or set distill.lora.rank=0 to train all parameters of the merged teacher.",
        )

    def _check_skeleton(self) -> None:
        every, data = self.judge.skeleton, self.data
        require(
            not every or (data.sequences == "packed" and every <= data.length),
            f"judge.skeleton={every} needs data.sequences='packed' and data.length >= {every}; set it to 0.",
        )

    def _check_networks(self) -> None:
        refusing = [name for name in self.distillers if DISTILLERS[name].own_teacher]
        others = sorted({DENOISER, *KINDS} - LIBRARY)
        require(
            self.network in others,
            f"network={self.network!r} is none of {', '.join(others)}; take one, or add a row to KINDS.",
        )
        require(
            not (refusing and (self.published or self.network != DENOISER)),
            f"distillers={refusing} need a teacher of this library; with another one take sdtt or alpha.",
        )
        for name, sizes in (("model", self.model), ("judge.model", self.judge.model)):
            require(
                sizes.vocab_size == sizes.length == 0,
                f"{name}.vocab_size and {name}.length come from the data; set data.length and tokenizer.",
            )

    @property
    def published(self) -> str:
        """The published model (Llama or GPT-2) whose network and tokenizer the run takes; empty: none."""
        if self.tokenizer.kind != "hub":
            return ""
        return self.teacher.init_from or self.teacher.checkpoint

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, MASK not counted, before the data are prepared.

        Exact for GPT-2's vocabulary and a file's; a SentencePiece model may turn out smaller than asked for.
        """
        require(
            self.tokenizer.kind != "hub",
            "The vocabulary of teacher.init_from is known only once that is loaded; leave it out here.",
        )
        if self.tokenizer.kind in ("gpt2", "file"):
            return train_tokenizer(self.tokenizer, []).vocab_size
        return self.tokenizer.vocab_size

    def denoiser(self, vocab_size: int) -> DenoiserConfig:
        """The denoiser's config for a vocabulary."""
        sizes = dataclasses.replace(self.model, vocab_size=vocab_size, length=self.data.length)
        kind: Any = KINDS[self.network].config
        has = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: x for name, x in vars(sizes).items() if name in has})

    def adapted(self, base: PublishedConfig) -> LlamaDenoiserConfig | GPT2DenoiserConfig:
        """The config of the denoiser that a published network, causal or a denoiser, is turned into."""
        return as_denoiser(
            base,
            shift=True,
            num_layers=self.teacher.init_layers or base.num_layers,
            length=self.data.length,
            compute_dtype=self.model.compute_dtype,
            remat=self.model.remat,
            unroll=self.model.unroll,
        )

    def seeing_denoiser(self, section: str, vocab_size: int) -> CoupledConfig:
        """The config of a student that sees the noise of a section, for a vocabulary."""
        return CoupledConfig.of(self.denoiser(vocab_size), getattr(self, section).noise)

    def rounds(self, distiller: str) -> range:
        """The numbers of the rounds of a distiller, given its name or that of its stage."""
        return range(1, getattr(getattr(self, stage_of(distiller)), "num_rounds", 1) + 1)

    def causal(self, vocab_size: int) -> CausalConfig:
        """The judge's config for a vocabulary.

        The judge reads BOS and the text without its last token: as many positions as the text has tokens.
        """
        sizes = self.judge.model
        return dataclasses.replace(sizes, vocab_size=vocab_size, length=self.data.length)


def config_dict(config: RunConfig) -> ml_collections.ConfigDict:
    """The config as config files return it: locked, so that an unknown field is an error."""
    return ml_collections.ConfigDict(settable(config)).lock()


def run_config(config: ml_collections.ConfigDict | dict[str, Any]) -> RunConfig:
    """The config that a config file and the command line made; `ConfigError` names a field that is wrong."""
    require(not isinstance(config, RunConfig), f"config: {NO_CONFIG_DICT}")
    mapping = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return from_mapping(RunConfig, mapping)


def check_overrides(argv: Sequence[str]) -> None:
    """Raises `ConfigError` for a config file, or a field in `--config.FIELD=…`, that does not exist."""
    check_fields(argv, "config", RunConfig)
