"""Batches as a pure function of (seed, step), from ArrayRecord shards through Grain."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.config import each, positive, require, whole
from sdtt_jax.data.records import Records, Shard, check_decoding, read_info, refuse_extra
from sdtt_jax.errors import DataError
from sdtt_jax.paths import as_path

# Splits of at most this size are held in memory: a batch is then one gather.
CACHE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Split:
    """Sequences of one split, in random access."""

    name: str  # `train` or `validation`
    length: int  # tokens in a sequence
    # The sequences `[records, length]` in memory, or None if they are read as needed.
    cached: np.ndarray | None
    _records: Records = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Sequences at `indices`, `[n]` whole numbers: int32 `[n, length]`.

        Raises:
          ConfigError: another shape, other values (a mask, fractions), or a number that no sequence has.
        """
        wanted = np.asarray(indices)
        numbers = np.issubdtype(wanted.dtype, np.integer) or wanted.size == 0
        require(
            wanted.ndim == 1 and bool(numbers and ((wanted >= 0) & (wanted < len(self))).all()),
            f"indices must be [n] whole numbers from 0 to {len(self) - 1}, not {indices!r:.80}.",
        )
        wanted = wanted.astype(np.int64)
        found = self._records.read(wanted) if self.cached is None else self.cached[wanted]
        return found.astype(np.int32)

    def batch(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> np.ndarray:
        """The sequences of batch `step`: int32 `[batch_size, length]`, or its `rows`, a host's slice.

        Arguments and order are those of `shuffled`.
        """
        return self.gather(shuffled(len(self), seed, step, batch_size, rows))


def shuffled(
    size: int, seed: int, step: int, batch_size: int, rows: slice | None = None
) -> np.ndarray:
    """Which of `size` records batch `step` holds: int64 `[batch_size]`, or its `rows`.

    The batches of all steps, laid end to end, are epochs, each a random permutation of the records. An
    epoch's end may fall within a batch. Nothing but the arguments enters, so a resumed run needs no state and
    any number of hosts sees the same global batches, of `batch_size` records each. `seed` and `step` are at
    least 0; `rows` are the rows of the batch that are wanted, all if None.
    """
    _check_batch(seed, step, batch_size)
    positions = _places(step, batch_size, rows)
    return np.array([_shuffled(size, seed, position) for position in positions], np.int64)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several splits mixed by weights.

    The batches of all steps, laid end to end, are a stream. Grain computes, without drawing anything, which
    split and which of its examples each position of the stream takes, so that all splits advance evenly.
    """

    splits: tuple[Split, ...]  # their sequences all have the same length
    # Above 0; only their proportions count, to a hundredth of the smallest.
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require(
            len(self.splits) == len(self.weights) > 0,
            f"weights={self.weights} must hold one weight for each of {len(self.splits)} splits.",
        )
        each(positive, weights=self.weights)
        lengths = [split.length for split in self.splits]
        require(
            len(set(lengths)) == 1,
            f"Mixed splits must have sequences of the same length, not {lengths}; prepare them with the same "
            "data.length.",
        )

    def sources(
        self, step: int, batch_size: int, rows: slice | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each example of batch `step`, its split and its number within it: int64 `[batch_size]` each."""
        counted = _mixed(self.weights)
        pairs = [counted[place] for place in _places(step, batch_size, rows)]
        return tuple(np.array(pairs, np.int64).reshape(-1, 2).T)  # type: ignore[return-value]

    def batch(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> np.ndarray:
        """The sequences of batch `step`: int32 `[batch_size, length]`, or its `rows`; as `Split.batch`."""
        _check_batch(seed, step, batch_size)
        which, count = self.sources(step, batch_size, rows)
        found = np.empty((len(which), self.splits[0].length), np.int32)
        for number, split in enumerate(self.splits):
            mine = np.flatnonzero(which == number)
            # Each split in an order of its own.
            own = _epoch_seed(seed, number)
            places = [_shuffled(len(split), own, int(place)) for place in count[mine]]
            found[mine] = split.gather(np.array(places, np.int64))
        return found


def open_mixture(directory: str | Path, others: Mapping[str, float]) -> Split | Mixture:
    """The train split of a data folder, with weight 1, mixed with those of other folders by their weights.

    Raises:
      DataError: a folder is not whole, or was prepared with another vocabulary, normalisation, kind of
        sequences or `wrap`.
      ConfigError: the sequences of the folders differ in length.
    """
    own = open_split(directory, "train")
    if not others:
        return own
    facts = _alike(directory)
    for folder in others:
        if (found := _alike(folder)) != facts:
            raise DataError(
                f"{folder} was prepared with another vocabulary, data.normalize, data.sequences or data.wrap "
                f"than {directory} ({found}, not {facts}); prepare them in the same way."
            )
    splits = (own, *(open_split(folder, "train") for folder in others))
    return Mixture(splits, (1.0, *others.values()))


def _alike(directory: str | Path) -> dict[str, str | bool]:
    """What mixed data must have in common; fields that are newer than the data have their defaults."""
    content = read_info(directory)
    data = content.get("data", {})
    return {
        "vocabulary": content["tokenizer_digest"],
        "normalize": data.get("normalize", "none"),
        "sequences": data.get("sequences", "packed"),
        "wrap": data.get("wrap", False),
    }


@functools.lru_cache(maxsize=8)
def _mixed(weights: tuple[float, ...]) -> Any:
    """Maps a position of the stream to `(split, number within the split)`."""
    import grain

    # Endless, because `_shuffled` divides the numbers into epochs.
    endless = [
        grain.MapDataset.range(2**48).map(lambda place, number=number: (number, place))
        for number in range(len(weights))
    ]
    return grain.MapDataset.mix(endless, weights)


def _places(step: int, batch_size: int, rows: slice | None) -> range:
    return range(step * batch_size, (step + 1) * batch_size)[rows or slice(None)]


def _check_batch(seed: int, step: int, batch_size: int) -> None:
    whole(1, batch_size=batch_size)
    whole(0, step=step, seed=seed)


def _shuffled(size: int, seed: int, position: int) -> int:
    epoch, index = divmod(position, size)
    if size == 1:
        return 0
    import grain  # here, as in `Records`: it takes 0.3 s, which commands that read no data are spared

    return grain.experimental.index_shuffle(
        index, max_index=size - 1, seed=_epoch_seed(seed, epoch), rounds=4
    )


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def open_split(directory: str | Path, split: str, cache_bytes: int = CACHE_BYTES) -> Split:
    """Opens a split that `prepare` wrote, `train` or `validation`; holds it in memory up to `cache_bytes`.

    Raises:
      DataError: no such split, or a shard is missing, of the wrong size or damaged, or there is a
        shard that was not written with the others.
    """
    directory = as_path(directory)
    content = read_info(directory)
    shards = [Shard(**shard) for shard in content["shards"] if shard["split"] == split]
    if not shards:
        raise DataError(f"{directory} has no split {split!r}; it is train or validation.")
    refuse_extra(directory, content["shards"])
    length = content["info"]["length"]
    records = Records(directory, shards, length, np.dtype(content["dtype"]))
    check_decoding(directory, shards, split, records)
    cached = None
    if records.bytes <= cache_bytes:
        cached = records.read(np.arange(len(records)))
    return Split(split, length, cached, records)
