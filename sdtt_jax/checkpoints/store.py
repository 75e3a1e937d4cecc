"""Checkpoints by step, verified when they are read, and the final parameters of a stage.

Orbax stores them. This module adds a digest of every leaf, since Orbax restores flipped bits without an
error. It distinguishes a damaged checkpoint, in whose place it takes the one before, from a checkpoint of
another model, which is an error. A step that cannot be read never blocks later saves.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from sdtt_jax.checkpoints import metadata as stored
from sdtt_jax.checkpoints import orbax
from sdtt_jax.checkpoints.aside import CORRUPT, any_aside, move_aside, refuse_uncommitted
from sdtt_jax.checkpoints.digests import canonical_sha256, describe
from sdtt_jax.checkpoints.metadata import DamagedError, agreed, brief, require_same_leaves
from sdtt_jax.checkpoints.place import Place
from sdtt_jax.config import whole
from sdtt_jax.errors import CheckpointError, MismatchError
from sdtt_jax.parallel import processes
from sdtt_jax.paths import absolute, with_path_in_errors
from sdtt_jax.trees import flat_leaves, leaf_name, nested
from sdtt_jax.typing import Tree

# What a folder of delivered parameters consists of.
PARTS = ("params", "meta")
# Consecutive failed saves after which `save` raises instead of logging.
MOST_FAILED_SAVES = 3
LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage or round, a directory per step. Use as a context manager.

    Args:
      directory: made if missing.
      keep: how many of the latest to keep; all if None.
      keep_every: also keep every step that this divides; 0 for none.
      metadata: JSON-ready, stored with every checkpoint (config fingerprint, stage, round).

    Attributes:
      seconds: how long `save` and `wait` have held up their caller, not counting its wait for devices.
      failed_saves: consecutive failed saves so far.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = None,
        keep_every: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ):
        self.directory = absolute(directory)
        whole(1, keep=1 if keep is None else keep)
        whole(0, keep_every=keep_every)
        self.metadata = stored.plain(metadata or {})
        self.failed_saves, self.seconds = 0, 0.0
        self._last_error: Exception | None = None  # of the last save that failed
        self._pending: tuple[int, Any] | None = None
        try:
            refuse_uncommitted(self.directory)
            self.directory.mkdir(parents=True, exist_ok=True)
            self._place = Place(self.directory)
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                cleanup_tmp_directories=True,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                context=orbax.writing(),
                preservation_policy=orbax.kept(keep, keep_every),
            )
        except OSError as error:
            raise CheckpointError(
                f"Cannot keep checkpoints in {self.directory}: {error}."
            ) from error
        orbax.disable_orbax_preemption(self._orbax)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.wait()
        finally:
            with with_path_in_errors(self.directory):
                self._orbax.close()
            self._place.close()

    @property
    def steps(self) -> list[int]:
        """Steps on disk, ascending."""
        return sorted(c.step for c in self._orbax.checkpoints)

    def save(self, state: Tree) -> bool:
        """Starts to write `state`, a tree with a `step`; returns once its arrays may be donated.

        Returns:
          Whether a save was started: a state that is there already is not written again.

        Raises:
          CheckpointError: a leaf is not finite, the last saves all failed, the directory is gone, or it holds
            a later step, or this step of another state.
          ConfigError: as `orbax.require_plain`.
        """
        # The step that computes the state is not part of what saving costs.
        jax.block_until_ready(state)
        orbax.require_plain(self.directory)
        with self._timed():
            self._finish()
            self._place.check()
            leaves = flat_leaves(state)
            step = int(jax.device_get(state.step))
            if self.steps and step <= self.steps[-1]:
                latest = self.directory / str(self.steps[-1])
                stored.require_same_state(step, leaves, latest, lambda: _common_metadata(latest)[1])
                return False
            metadata = stored.signed(self.metadata | {"step": step}, leaves)
            content = {"state": nested(leaves), "meta": metadata}
            try:
                response = self._orbax.save_checkpointables_async(step, content)
            # Orbax, TensorStore and the file system each raise their own.
            except Exception as error:
                self._failed(step, error)
                return False
            self._pending = None if response is None else (step, response)
            return response is not None

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          CheckpointError: it failed, and so did those before it; a single failure is logged.
        """
        with self._timed():
            self._finish()

    def finish(self, state: Tree) -> None:
        """Waits until `state`, a training's last, is on disk, because whatever follows continues from it.

        Raises:
          CheckpointError: the state could not be saved, although that was tried twice, or it was saved in a
            directory that has been moved or removed since.
        """
        self.wait()
        self._place.check()
        step = int(jax.device_get(state.step))
        if processes.agree(step not in self.steps):
            self.save(state)
            self.wait()
        if processes.agree(step not in self.steps):
            reason = brief(self._last_error) if self._last_error else "another process failed"
            raise CheckpointError(
                f"The last state, of step {step}, could not be saved in {self.directory}: {reason}; fix that "
                "(is the disk full?) and run the same command again."
            )

    def _finish(self) -> None:
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            self.failed_saves = 0
        except Exception as error:
            self._failed(step, error)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began

    def restore(
        self, abstract: Tree, expect: Mapping[str, Any] | None = None, *, before: int | None = None
    ) -> tuple[Tree, dict[str, Any]] | None:
        """The latest checkpoint that is whole, placed as `abstract` says.

        Later ones that are damaged are moved to `corrupt/`, with a warning each.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with shardings, e.g. from `StateSpec.abstract`; the mesh
            may differ from the one that saved.
          expect: metadata that must be equal, e.g. `{"fingerprint": …}`; a field that the checkpoint lacks
            is not compared, since the version that wrote the checkpoint did not have it yet.
          before: look only at steps below this one.

        Returns:
          `(state, metadata)`, or None if nothing was ever saved here.

        Raises:
          CheckpointError: every checkpoint is damaged.
          MismatchError: the latest whole one is another model's or run's (it is named); nothing is moved.
        """
        self.wait()
        damaged: dict[int, Exception] = {}
        for step in reversed([s for s in self.steps if before is None or s < before]):
            path = self.directory / str(step)
            try:
                restored = _read(path, abstract, stored.plain(expect or {}))
            except DamagedError as error:
                LOG.warning("Checkpoint %s is damaged (%s); trying the one before it.", path, error)
                damaged[step] = error
                continue
            self._move_aside(damaged)
            return restored
        if damaged:
            reasons = "; ".join(f"step {step}: {error}" for step, error in damaged.items())
            raise CheckpointError(
                f"Every checkpoint in {self.directory} is damaged ({reasons}); "
                "restore them from a copy, or remove the directory to start again."
            )
        if any_aside(self.directory):
            raise CheckpointError(
                f"{self.directory} holds only damaged checkpoints, in {CORRUPT}/; "
                "restore one from a copy, or remove the directory to start again."
            )
        return None

    def _move_aside(self, damaged: Mapping[int, Exception]) -> None:
        # Moved, because Orbax silently skips every save at a step below the latest one on disk; kept,
        # because they are evidence.
        if not damaged:
            return
        if processes.is_first():
            move_aside(self.directory, damaged)
        processes.barrier("moved damaged checkpoints aside")
        self._orbax.reload()

    def _failed(self, step: int, error: Exception) -> None:
        self.failed_saves, self._last_error = self.failed_saves + 1, error
        LOG.warning(
            "Saving step %d in %s failed: %s%s", step, self.directory, error, orbax.late(error)
        )
        # Orbax raises the error of a background save once in every thread that waits for it. Waiting here
        # takes it out of the way of the next save and of closing.
        with contextlib.suppress(Exception):
            self._orbax.wait()
        with contextlib.suppress(OSError):  # The directory itself may be what is gone.
            self._orbax.reload()
        if self.failed_saves >= MOST_FAILED_SAVES:
            raise CheckpointError(
                f"Saving in {self.directory} failed {self.failed_saves} times in a row, most recently: "
                f"{brief(error)}."
            ) from error


def save_params(
    directory: str | os.PathLike[str], params: Tree, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes the parameters that a stage delivers; replaces what was there.

    Args:
      directory: e.g. `DIR/rounds/01/final`.
      params: nested dict of arrays.
      metadata: JSON-ready, stored with them, e.g. the network's config.

    Raises:
      CheckpointError: a leaf is not finite, or writing failed; `ConfigError` as of `orbax.require_plain`.
    """
    orbax.require_plain(directory)
    leaves = flat_leaves(params)
    content = {"params": nested(leaves), "meta": stored.signed(metadata or {}, leaves)}
    try:
        with orbax.writing():
            ocp.save_checkpointables(absolute(directory), content, overwrite=True)
    except Exception as error:
        remedy = "fix that (is the disk full?) and run the same command again"
        raise CheckpointError(f"Cannot write to {directory}: {brief(error)}; {remedy}.") from error


def load_params(
    directory: str | os.PathLike[str], shardings: Tree | Callable[[dict[str, Any]], Tree] = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_params` wrote, verified.

    Args:
      directory: as given to `save_params`.
      shardings: one sharding for all leaves, a tree of shardings, or a function that makes either from
        the metadata; the first device if None. Each process reads the pieces of its devices.

    Returns:
      `(params, metadata)`: a nested dict of arrays, and what was stored with them.

    Raises:
      CheckpointError: there is nothing, or it is damaged.
    """
    path = absolute(directory)
    with _naming_damaged(directory):
        metadata, table = _common_metadata(path)
        shardings = shardings(metadata) if callable(shardings) else shardings
        if shardings is None or isinstance(shardings, jax.sharding.Sharding):
            one = shardings or SingleDeviceSharding(jax.local_devices()[0])
            placement = dict.fromkeys(table, one)
        else:
            placement = flat_leaves(shardings)
        require_same_leaves(table, placement, path, typed=False)
        abstract = {
            leaf: jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype), sharding=placement[leaf])
            for leaf, (dtype, shape, _) in table.items()
        }
        return nested(_read_leaves(path, "params", abstract, table)), metadata


def load_facts(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save_params` stored with the parameters, which are not read.

    Raises:
      CheckpointError: there is nothing, or its metadata are damaged.
    """
    with _naming_damaged(directory):
        return _stored_metadata(absolute(directory))[0]


def stored_digest(directory: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of what `save_params` wrote there: dtype, shape and digest of every leaf, as stored.

    Raises:
      CheckpointError: there is nothing, or its metadata are damaged.
    """
    with _naming_damaged(directory):
        return canonical_sha256(_stored_metadata(absolute(directory))[1])


@contextlib.contextmanager
def _naming_damaged(directory: str | os.PathLike[str]) -> Iterator[None]:
    if not absolute(directory).is_dir():
        raise CheckpointError(
            f"There are no parameters at {directory}; give a folder named final, or restore it from a copy."
        )
    try:
        yield
    except DamagedError as error:
        raise CheckpointError(
            f"The parameters at {directory} are damaged: {error}. Restore them from a copy; or, in a run, "
            "remove the folder and run the same command again."
        ) from error


def _read(path: Path, abstract: Tree, expect: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
    metadata, table = _common_metadata(path)
    for field, wanted in expect.items():
        if metadata.get(field, wanted) != wanted:
            raise MismatchError(
                f"Checkpoint {path} belongs to another run: its {field} is {metadata[field]!r}, "
                f"this run's is {wanted!r}."
            )
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    wanted_leaves = {leaf_name(place): leaf for place, leaf in leaves}
    require_same_leaves(table, wanted_leaves, path)
    restored = _read_leaves(path, "state", wanted_leaves, table)
    return jax.tree.unflatten(structure, [restored[name] for name in wanted_leaves]), metadata


def _common_metadata(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_stored_metadata` finds; `ConfigError` if processes found different things under this name."""
    metadata, table = agreed(lambda: _stored_metadata(path))
    facts, remedy = {"meta": metadata, "leaves": table}, "give all hosts the same files"
    processes.require_same(f"The checkpoint {path}", facts, remedy)
    return metadata, table


def _stored_metadata(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with orbax.reading():
            content = ocp.load_checkpointables(path, {"meta": None})["meta"]
    except Exception as error:
        raise DamagedError(f"its metadata cannot be read: {brief(error)}") from error
    return stored.verified(content, path)


def _read_leaves(
    path: Path, item: str, abstract: Mapping[str, Any], table: Mapping[str, Any]
) -> dict[str, jax.Array]:
    def load() -> dict[str, jax.Array]:
        try:
            with orbax.reading():
                found = ocp.load_checkpointables(path, {item: nested(abstract)})
            return flat_leaves(found[item])
        except Exception as error:  # There are at least six types.
            raise DamagedError(f"it cannot be read: {brief(error)}") from error

    leaves = agreed(load)
    try:
        described = describe(leaves)
    except CheckpointError as error:
        raise DamagedError(f"it cannot be read: {brief(error)}") from error
    for name, (_, _, digest) in table.items():
        if described[name][2] != digest:
            raise DamagedError(f"{name} does not have the digest that was written with it")
    return leaves
