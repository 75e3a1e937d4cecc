"""Everything that the stages of a run share: config, directory, mesh, data and networks."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.settings import RunConfig
from experiments.stages import mirror
from experiments.stages.objective import Networks, distill_objective
from experiments.stages.workdir import Workdir, final, is_delivered
from sdtt_jax.checkpoints.place import Place
from sdtt_jax.checkpoints.store import load_facts, load_params, save_params
from sdtt_jax.config import from_mapping, require, to_mapping
from sdtt_jax.data import DataInfo, Split, Tokenizer, load_tokenizer, prepare
from sdtt_jax.data.engines import Engine, in_process
from sdtt_jax.data.loader import Mixture, open_mixture
from sdtt_jax.data.records import INFO_FILE, read_info
from sdtt_jax.data.tokenizer import CONFIG_FILE as TOKENIZER_FILE
from sdtt_jax.errors import ConfigError, DataError, MismatchError, UserError
from sdtt_jax.interchange.adapters import network_shardings, read_delivered
from sdtt_jax.interchange.load import load, load_network
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import CausalNetwork, Denoiser, kinds
from sdtt_jax.networks.base import Network
from sdtt_jax.networks.config import GPT2Config, PublishedConfig
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place_rows
from sdtt_jax.paths import as_path, is_remote
from sdtt_jax.progress import track_text
from sdtt_jax.training.step import TrainStep, make_train_step
from sdtt_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Run(Networks):
    """A run in progress."""

    config: RunConfig
    workdir: Workdir
    mesh: Mesh
    engine: Engine[Any] = in_process  # prepares the data
    # Whether the engine's workers can reach a workdir in a bucket, but not this machine's disk.
    in_bucket: bool = False
    place: Place | None = None  # the workdir's folder, which must not be moved while the run writes

    def log(self, message: str) -> None:
        """Prints a line, on process 0 only."""
        if processes.is_first():
            print(message, flush=True)

    @functools.cached_property
    def log_once(self) -> Callable[[str, str], None]:
        """`log` for what is said of a model, `(name, message)`, but not twice: a stage may run again."""
        return functools.cache(lambda _name, message: self.log(message))

    def check_place(self) -> None:
        """Raises `CheckpointError` if the workdir was moved or removed; call it before writing there."""
        if self.place is not None:
            self.place.check()

    @functools.cached_property
    def info(self) -> DataInfo:
        """Facts of the data, which are prepared first if they are not."""
        self.check_place()
        local = self.workdir.local
        data, tokenizer = self.config.data, self.config.tokenizer
        ready: Any = None
        if self.config.published and not self.is_prepared:
            assert self.base is not None
            ready = self.base.text_tokenizer

        def prepared(where: Workdir = local) -> DataInfo:
            folders = where.data, where.tokenizer
            return prepare(data, tokenizer, *folders, track_text, ready, self.engine)

        if not is_remote(self.workdir.root):
            # The other processes find it done.
            return processes.on_first("Preparing the data", prepared) or prepared()

        def publish() -> None:
            if self.in_bucket:
                prepared(self.workdir)
            elif not (self.workdir.data / INFO_FILE).exists():
                prepared()
                mirror.upload(local.tokenizer, self.workdir.tokenizer, TOKENIZER_FILE)
                mirror.upload(local.data, self.workdir.data, INFO_FILE)

        processes.on_first("Preparing the data", publish)
        self.workdir.downloaded()
        return prepared()

    @property
    def is_prepared(self) -> bool:
        """Whether the data stage has finished; all processes get the same answer."""
        return processes.agree((self.workdir.data / INFO_FILE).exists())

    @property
    def vocab_size(self) -> int:
        return self.info.vocab_size

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.workdir.local.tokenizer)

    @functools.cached_property
    def sequences(self) -> Sequences | None:
        data = self.config.data
        if data.sequences == "packed":
            return None
        return Sequences(data.sequences, self.info.bos_id, self.info.eos_id, data.wrap)

    @property
    def packing(self) -> dict[str, Any]:
        """The facts of a model that say how its sequences were packed."""
        return {"begins_with_bos": self.config.data.wrap, "sequences": self.config.data.sequences}

    @functools.cached_property
    def train_split(self) -> Split | Mixture:
        others = self.config.data.mixed()
        here = {str(mirror.readable(as_path(folder))): weight for folder, weight in others.items()}
        return open_mixture(self.workdir.local.data, here)

    def texts(self, seed: int, number: int, size: int) -> jax.Array:
        """Batch `number` of the training split in a seed's order, on the mesh: `[size, length]` int32."""
        rows = functools.partial(self.train_split.batch, seed, number, size)
        return place_rows(rows, (size, self.config.data.length), self.mesh)

    @functools.cached_property
    def data_digest(self) -> str:
        """Identifies all data that are trained on: equal digests mean equal batches."""
        others = (read_info(folder)["info"] for folder in self.config.data.mixed())
        return "+".join([self.info.fingerprint, *(info["fingerprint"] for info in others)])

    def _is_digest(self, stored: str) -> bool:
        """Whether `stored` matches `data_digest`.

        If the mixed-in data, which only training needs, are gone, only the run's own part is compared.
        """
        try:
            return stored == self.data_digest
        except DataError:
            return stored.split("+")[0] == self.info.fingerprint

    @functools.cached_property
    def base(self) -> Model | CausalModel | None:
        """The published model that the teacher is or starts from, without its parameters; or None.

        Only the stages data and teacher use it; later ones must do without, since it may be gone.
        """
        name = self.config.published
        if not name:
            return None
        model = load_network(name)
        require(
            isinstance(model.config, PublishedConfig),
            f"config.teacher.{'checkpoint' if self.config.teacher.checkpoint else 'init_from'}={name} is "
            "neither of the Llama family nor a GPT-2, the only networks that tokenizer.kind='hub' is for; "
            "give it as config.teacher.checkpoint, with its vocabulary by tokenizer.kind='file' or 'gpt2'.",
        )
        if isinstance(
            model.config, GPT2Config
        ):  # found by its network, too, but after the preparation
            data, most = self.config.data, model.config.length
            require(
                data.length <= most,
                f"data.length={data.length} exceeds the {most} positions of {name}; reduce it.",
            )
            require(
                data.sequences == "packed",
                f"data.sequences={data.sequences!r} confines attention to texts, which a GPT-2 such as "
                f"{name} cannot do; take data.sequences='packed'.",
            )
        layers, has = self.config.teacher.init_layers, model.config.num_layers
        require(layers <= has, f"teacher.init_layers={layers} exceeds the {has} layers of {name}.")
        return model

    @functools.cached_property
    def denoiser(self) -> Any:
        """The network of teacher and students: a `Denoiser`, or `base` turned into a denoiser."""
        if not self.config.published:
            return super().denoiser
        config: Any
        if is_delivered(self.workdir.teacher):
            published = kinds.LLAMA_DENOISER, kinds.GPT2_DENOISER
            config = stored_network(self.workdir.teacher, *published).config
        else:
            assert self.base is not None
            config = self.base.config
        return kinds.network_of(self.config.adapted(config))

    @property
    def was_causal(self) -> bool:
        return isinstance(self.base, CausalModel)

    def base_params(self) -> Params:
        """The parameters that the teacher starts from, on the mesh."""
        model = load(self.config.teacher.init_from, mesh=self.mesh)
        params = self.shortened(model.params)
        if layers := self.config.teacher.init_layers:
            first = jax.tree.map(lambda x: x[:layers], params["blocks"])
            params = params | {"blocks": first}
        return params if isinstance(model, Model) else self.denoiser.init_from(params)

    def shortened(self, params: Params) -> Params:
        """The parameters of `base`, with position embeddings cut to the length of the run's sequences."""
        if "positions" not in params:
            return params
        table = params["positions"]["embedding"][: self.config.data.length]
        return params | {"positions": {"embedding": table}}

    @functools.cached_property
    def judge(self) -> CausalNetwork:
        """The network of the judge: of the config's sizes, or that of an existing model."""
        name = self.config.judge.checkpoint
        if not name:
            return super().judge
        network: CausalNetwork
        if is_delivered(self.workdir.judge):
            causal = kinds.CAUSAL, kinds.GPT2, kinds.LLAMA
            network = stored_network(self.workdir.judge, *causal)
        else:
            model = load_network(name)
            require(
                isinstance(model, CausalModel),
                f"config.judge.checkpoint={name} is a denoiser; give a causal model, which reads token "
                "by token.",
            )
            network = model.network  # type: ignore[union-attr]
        return network

    @functools.cached_property
    def distill_step(self) -> TrainStep:
        """SDTT's compiled step, of all its rounds: dt and the teacher are its arguments."""
        return make_train_step(distill_objective(self), self.config.distill.train)

    def deliver(self, folder: Path, network: Network, params: Params, **facts: Any) -> None:
        """Writes what a stage or round delivers to its folder, with the facts that loading it needs.

        Raises:
          CheckpointError: they could not be written, or the workdir was moved or removed.
        """
        self.check_place()
        meta = {
            "kind": kinds.kind_of(network),
            "model": to_mapping(network.config),
            "schedule": to_mapping(self.config.schedule),
            "data": self.data_digest,
            "tokenizer": self.tokenizer.digest,
            "normalize": self.tokenizer.normalize,
        } | self.packing
        if processes.is_first():
            # The results so far were measured with other parameters.
            self.workdir.results.unlink(missing_ok=True)
        save_params(final(folder), params, meta | facts)

    def delivered(
        self, folder: Path, network: Network, needed_by: str, lora: LoraConfig = LoraConfig()
    ) -> Params:
        """The parameters that a finished stage or round delivered, on the mesh.

        Of adapters, `lora`, they are read without their base; with rank 0 all are read, merged.

        Raises:
          UserError: the stage is not finished.
          CheckpointError: the folder holds another model, another stage's, or one trained on other data; or
            the workdir was moved or removed.
        """
        self.check_place()
        if not is_delivered(folder):
            raise missing(folder, needed_by)
        if not lora.rank:
            params, meta = read_delivered(final(folder), lambda _facts: network, self.mesh)
        else:
            shardings = network_shardings(network, self.mesh, lora)
            params, meta = load_params(final(folder), shardings)
        self._check_facts(folder, network, meta)
        return params

    def _check_facts(self, folder: Path, network: Network, meta: dict[str, Any]) -> None:
        """Raises `MismatchError` unless what a folder holds is its own stage's, of a network and its data."""
        # Earlier versions did not store which stage delivered the parameters.
        stage, number = meta.get("stage"), meta.get("round") or 0
        if stage and self.workdir.stage(stage, number) != folder:
            told = f"{stage}, round {number}" if number else stage
            raise MismatchError(
                f"{final(folder)} was delivered by {told}, not by its own stage; restore it from a copy, or "
                "remove it and run the same command again."
            )
        kind, model = kinds.kind_of(network), to_mapping(network.config)
        # Fields that the checkpoint lacks, because they are newer, get their defaults.
        newer = to_mapping(type(network.config)()) | (meta.get("model") or {})
        if kinds.stored_kind(meta.get("kind")) != kind or newer != model:
            raise MismatchError(
                f"{final(folder)} is a checkpoint of another model: {meta.get('kind')} "
                f"{meta.get('model')}, not {kind} {model}."
            )
        if "data" in meta and not self._is_digest(meta["data"]):
            raise MismatchError(
                f"{final(folder)} was trained on other data than {self.workdir.data} holds now; restore the "
                "corpus and prepare the data again, or give another --workdir."
            )

    def model(self, folder: Path, network: Denoiser, **facts: Any) -> Model:
        """The model that a finished stage or round delivered, to be evaluated."""
        where = {"path": str(final(folder)), "kind": kinds.kind_of(network)}
        return Model(
            params=self.delivered(folder, network, "evaluate"),
            tokenizer=self.tokenizer,
            facts=where | self.packing | facts,
            denoiser=network,
            schedule=self.diffusion.schedule,
        )


def stored_network(folder: Path, *known: str) -> Any:
    """The network, of a `known` kind, that a stage delivered, from the facts stored with its parameters.

    Raises:
      CheckpointError: the facts are damaged, or of another kind of network.
    """
    facts = load_facts(final(folder))
    kind, cause = kinds.stored_kind(facts.get("kind")), ""
    if kind in known:
        try:
            return kinds.network_of(
                from_mapping(kinds.KINDS[kind].config, facts.get("model") or {}, "model")
            )
        except ConfigError as error:
            cause = f" ({error})"
    raise MismatchError(
        f"{final(folder)} is a checkpoint of another model: {facts.get('kind')}{cause}, not "
        f"{' or '.join(known)} of this version; restore it from a copy, or remove it and run the same "
        "command again."
    )


def missing(folder: Path, needed_by: str) -> UserError:
    """The error of a stage that needs the model in `folder`, which another stage has yet to deliver."""
    return UserError(
        f"Stage {needed_by} needs {final(folder)}, which does not exist; run the stages before it."
    )
