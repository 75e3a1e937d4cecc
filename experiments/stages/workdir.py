"""A run's directory: its paths, its config, and a lock against other processes."""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.cli.overrides import UNKNOWN, Source
from experiments.distillers import DISTILLERS, SDTT, stage_of
from experiments.settings import RunConfig
from experiments.stages import mirror
from experiments.stages.lease import FILE as LEASE
from experiments.stages.lease import lease
from sdtt_jax import formats, paths
from sdtt_jax.checkpoints.aside import CORRUPT
from sdtt_jax.checkpoints.orbax import is_committed, require_plain
from sdtt_jax.checkpoints.place import Place
from sdtt_jax.config import ABSENT, differences, from_mapping, to_mapping
from sdtt_jax.data.records import INFO_FILE
from sdtt_jax.data.tokenizer import CONFIG_FILE as TOKENIZER_FILE
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.interchange.found import FINAL
from sdtt_jax.parallel import processes
from sdtt_jax.paths import is_remote, refuse_dangling
from sdtt_jax.threads import running

LOCK = ".lock"
# What `flock` reports if somebody holds the lock, and if the file system knows no locks.
HELD = (errno.EWOULDBLOCK, errno.EACCES)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Time between two writes of the seconds of a stage; a kill loses those since the last.
TIMED_EVERY = 60.0
LOG = logging.getLogger(__name__)
# Fields that may change when a run is resumed. They decide when and where things are computed, not what is
# computed; `skip_bad` decides how much bad input is allowed.
FREE_FIELDS = (
    "log_every",
    "save_every",
    "keep",
    "keep_every",
    "check_replicas_every",
    "max_rejected",
    "watchdog_seconds",
    "mesh",
    "skip_bad",
)


class Workdir:
    """The paths within a run's directory, `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.json"  # the run's config, and the file that it came from
        self.data, self.tokenizer = root / "data", root / "tokenizer"  # with its vocabulary
        self.teacher, self.judge = root / "teacher", root / "judge"  # these stages' checkpoints
        self.skeleton = root / "skeleton"  # those of a judge of every n-th token, if asked for
        self.base = root / "base"  # the frozen parameters that a teacher's adapters are added to
        # A line for each logged step, and for each update that was rejected.
        self.metrics, self.rejected = root / "metrics.jsonl", root / "rejected.jsonl"
        # What was measured, and texts to look at; seconds of each stage, and the report page.
        self.results, self.samples = root / "results.json", root / "samples.json"
        self.timing, self.report = root / "timing.json", root / "report.html"

    def round(self, number: int, distiller: str = SDTT) -> Path:
        """The checkpoints of a round of a distiller, counted from 1."""
        return self.stage(stage_of(distiller), number)

    def rounds(self, distiller: str) -> list[Path]:
        """The folders of a distiller's rounds that are there, ascending."""
        return sorted(path for path in self.round(1, distiller).parent.glob("*") if path.is_dir())

    def stage(self, stage: str, number: int = 0) -> Path:
        """The checkpoints of a training: a stage's, or a round's if the stage has rounds."""
        if not number:
            return self.root / stage
        return self.root / ("rounds" if stage == stage_of(SDTT) else stage) / f"{number:02d}"

    @property
    def local(self) -> "Workdir":
        """The directory from which data and tokenizer are read: this one, or the local copy of a bucket."""
        return Workdir(mirror.local_root(self.root))

    def downloaded(self) -> "Workdir":
        """`local`, with the finished data and tokenizer of this directory, copied if need be."""
        local = self.local
        if is_remote(self.root):
            mirror.download(self.tokenizer, local.tokenizer, TOKENIZER_FILE)
            mirror.download(self.data, local.data, INFO_FILE)
        return local


def final(stage: Path) -> Path:
    """The folder of the parameters that a stage or round delivers; it is whole once they are delivered."""
    return stage / FINAL


def has_begun(stage: Path) -> bool:
    """Whether the training of a stage or round has left anything to continue from, whole or damaged.

    Its folder is made before the first step, and pools of trajectories say themselves what determined them.
    """
    kept = stage.iterdir() if stage.is_dir() else ()
    return any(
        (path.name.isdigit() or path.name in (FINAL, CORRUPT)) and is_committed(path)
        for path in kept
    )


def is_delivered(stage: Path) -> bool:
    """Whether a stage or round has delivered; all processes get the same answer."""
    return processes.agree(is_committed(final(stage)))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` on process 0, atomically."""
    if processes.is_first():
        formats.write_json(path, content)


def read_json(path: Path, remedy: str = "remove it and run again") -> dict[str, Any]:
    """Reads an object from a JSON file of the run; raises an error that names the file if it is damaged."""
    return formats.read_json(path, UserError, remedy, "is damaged")


def claim_workdir(root: Path, config: RunConfig, source: Source = UNKNOWN) -> Workdir:
    """Checks that the directory holds a run of this config, or begins one there; makes it if missing.

    Raises:
      ConfigError: the directory holds a run of another config (the fields that differ are listed), or
        something that is not a run, or checkpoints could not be read again from there.
    """
    workdir = Workdir(root)
    mapping = to_mapping(config)
    if workdir.config.exists():
        stored = _stored_config(workdir)
        changeable = _changeable(workdir, stored, config)
        changed = []
        for line in differences(stored, mapping):
            fields = line.split(":")[0].split(".")
            may_change = {fields[0], ".".join(fields[:2])} & changeable
            if not may_change and not any(field in FREE_FIELDS for field in fields):
                changed.append(line)
        if changed:
            # What a config that cannot be read lacks may be newer than it, and need not be set.
            changed = [line for line in changed if f": {ABSENT!r} -> " not in line] or changed
            newer = any(line.endswith(f"-> {ABSENT!r}") for line in changed)
            version = (
                f" (or, as some are {ABSENT} here, take the version of sdtt_jax that has them)"
            )
            raise ConfigError(
                f"{root} holds a run of another config; give another --workdir, or set these fields "
                f"back{version * newer}:\n  " + "\n  ".join(changed)
            )
    # Hidden files were left by a process that was killed as it began, or hold the lock.
    elif root.exists() and any(not path.name.startswith(".") for path in paths.entries(root)):
        raise ConfigError(
            f"{root} is not empty and holds no run (no config.json); give another --workdir."
        )
    else:
        require_plain(root)
    origin = {"config_file": source.file, "overrides": source.overrides}
    write_json(workdir.config, {"config": mapping, **origin})
    return workdir


def _changeable(workdir: Workdir, stored: dict[str, Any], config: RunConfig) -> set[str]:
    """The sections and fields of the config that no stage has used yet, and that may therefore change.

    An error in the settings of a late stage may show only after earlier stages have trained, and it must
    still be possible to correct it. Distillers may be added and, if they have not begun, removed again.
    """
    made = [name for name in DISTILLERS if any(map(has_begun, workdir.rounds(name)))]
    begun = [name for name in stored.get("distillers", []) if name in made]
    changeable = {stage_of(name) for name in DISTILLERS if name not in made}
    # Those whose students they started from.
    changeable -= {stage_of(DISTILLERS[name].after) for name in made}
    if [name for name in config.distillers if name in begun] == begun:
        changeable.add("distillers")
    if not (has_begun(workdir.judge) or has_begun(workdir.skeleton)):
        changeable.add("judge")
    if not made and not has_begun(workdir.teacher):
        # A published teacher brings the tokenizer, with which the data may be prepared already.
        held = ["init_from", "checkpoint"] if config.tokenizer.kind == "hub" else []
        if has_begun(workdir.base):
            held += ["init_from", "checkpoint", "init_layers", "lora"]
        names = (field.name for field in dataclasses.fields(config.teacher))
        changeable |= {"schedule", "model"} | {f"teacher.{n}" for n in names if n not in held}
    # Stored results hold the settings of the evaluation, and are computed again with others.
    if not workdir.results.exists():
        changeable |= {"evaluation", "coupled.calls"}
    return changeable


@contextlib.contextmanager
def claimed_workdir(root: Path, config: RunConfig, source: Source = UNKNOWN) -> Iterator[None]:
    """Claims a directory, and releases it if a new run fails before it has produced anything.

    So a mistyped corpus or field can be corrected in the same directory.
    """
    begins = not Workdir(root).config.exists()
    workdir = claim_workdir(root, config, source)
    if begins and is_remote(root):
        # This host may have the data of an earlier run of the same name, which was removed from the bucket.
        paths.remove_tree(mirror.local_root(root))
    with contextlib.closing(Place(root)) as place:
        try:
            yield
        except BaseException:
            if begins and not place.lost:
                made = {path for path in paths.entries(root) if path.name not in (LOCK, LEASE)}
                if made <= {workdir.config, workdir.timing}:
                    for path in made:
                        path.unlink()
            raise


def _stored_config(workdir: Workdir) -> dict[str, Any]:
    """The config that is stored with the run; newer fields get their defaults."""
    remedy = "restore it from a copy, or give another --workdir"
    stored = read_json(workdir.config, remedy).get("config")
    if not isinstance(stored, dict) or not isinstance(stored.get("distillers", []), list):
        raise UserError(f"{workdir.config} is damaged (no config in it); {remedy}.")
    try:
        return to_mapping(from_mapping(RunConfig, _without_idle(stored)))
    except ConfigError:
        return stored


def _without_idle(stored: Any) -> Any:
    """A stored config without Muon's settings of other optimizers, which an earlier version took."""
    if not isinstance(stored, dict):
        return stored
    idle = ("momentum",) if stored.get("name") in ("adam", "adamw") else ()
    return {name: _without_idle(value) for name, value in stored.items() if name not in idle}


def _owner() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
    """Holds the directory for this process, until the operating system releases it, however it ends.

    Buckets have no such locks; there the lock is a lease, which must be renewed. Where a file system has none
    (Lustre without `-o flock`, NFS without a lock daemon), a warning says so, and nothing is locked.

    Raises:
      UserError: another process holds it, or it cannot be made.
    """
    if is_remote(root):
        with lease(root, _owner()):
            yield
        return
    refuse_dangling(root, UserError)
    if not root.exists():
        require_plain(root)  # as `claim_workdir` will, but before anything is made
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise UserError(
            f"Cannot write to --workdir={root}: {error.strerror}; give another folder."
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                handle.seek(0)
                raise UserError(
                    f"{root} is in use by another run ({handle.read().strip() or 'unknown process'}); "
                    "wait for it, or give another --workdir."
                ) from None
            if error.errno not in NO_LOCKS:
                raise UserError(
                    f"{root} cannot be locked: {error.strerror}; give another --workdir."
                ) from None
            LOG.warning(
                "%s lies on a file system without locks (%s): do not start a second run there while this "
                "one goes on.",
                root,
                error.strerror,
            )
        handle.truncate(0)
        handle.write(_owner())
        handle.flush()
        yield


@contextlib.contextmanager
def timed(workdir: Workdir, stage: str, place: Place | None = None) -> Iterator[None]:
    """Adds the seconds spent in a stage to those of earlier calls: now and then, and at the end.

    Raises:
      CheckpointError: the directory, `place`, has been moved or removed.
      UserError: the file of seconds is damaged.
    """
    start, over, written = time.monotonic(), threading.Event(), 0.0

    def add() -> None:
        nonlocal written
        if place is not None:
            place.check()
        seconds = read_json(workdir.timing) if workdir.timing.exists() else {}
        before = seconds.get(stage, 0.0)
        if not isinstance(before, float | int):
            raise UserError(
                f"{workdir.timing} is damaged ({stage} is not a number); remove it and run again."
            )
        whole = round(before + time.monotonic() - start - written, 1)
        write_json(workdir.timing, seconds | {stage: whole})
        written += whole - before

    def keep() -> None:
        while not over.wait(TIMED_EVERY):
            # On a full disk the stage's own error says more than an error about this file would.
            with contextlib.suppress(OSError, UserError):
                add()

    try:
        with running("seconds of the stage", over, keep):
            yield
    except BaseException:
        with contextlib.suppress(OSError, UserError):
            add()
        raise
    add()
