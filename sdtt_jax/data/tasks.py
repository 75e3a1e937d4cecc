"""The tasks of a preparation, which any process can run: reading a part of the corpus, writing a shard.

Each task writes its files under temporary names and renames them when they are complete, its record last. So
a task whose record exists is finished, and one that was killed can be run again.
"""

import collections
import contextlib
import functools
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sdtt_jax.data.corpora import SPLITS, TRAIN, VALIDATION, Recipe, refuse_bad
from sdtt_jax.data.division import DOCUMENT, Index, Rule, digest
from sdtt_jax.data.normalize import PROMPT_END
from sdtt_jax.data.packing import chunk_length, cut, encode_documents, ended
from sdtt_jax.data.reading import BadInputError, Part
from sdtt_jax.data.tokenizer import CONFIG_FILE, Tokenizer, load_tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.ops.sequence_kinds import Sequences
from sdtt_jax.paths import as_path, written_whole

# How many bad rows of each kind are named for each part.
NAMED_OF_A_KIND = 5
# Tokens that are read from the store at a time.
_TOKENS_AT_ONCE = 2**20


class Store(NamedTuple):
    """The tokens of a corpus during its preparation, in files by part."""

    folder: str  # of the files; all workers must reach it
    dtype: str  # of the tokens; "" if there are none, only the index of documents

    def path(self, number: int, suffix: str) -> Path:
        """The file of a part: `.json` its record, `.npy` its index, `.tokens`, `.sides`."""
        return as_path(self.folder) / f"{number:06d}{suffix}"

    def documents(self, number: int) -> Index:
        """The documents of a part: `[documents]` of DOCUMENT."""
        with self.path(number, ".npy").open("rb") as file:
            return np.load(file)

    def sides(self, number: int) -> np.ndarray:
        """The split of each document of a part, as `division.choices` gives it."""
        return np.frombuffer(self.path(number, ".sides").read_bytes(), np.uint8)

    def record(self, number: int) -> dict[str, Any]:
        """The record that a finished part has written."""
        return read_json(self.path(number, ".json"))

    def stream(self, number: int, side: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """The tokens of a part's documents that are in split number `side`, as `packing.ended` gives them.

        `start` and `stop` are counted from the part's first token of the split.
        """
        lengths = self.documents(number)["tokens"].astype(np.int64) + 1
        ends = np.cumsum(lengths)
        mine = np.flatnonzero(self.sides(number) == side)
        if not len(mine):
            return
        # Neighbours are read in one go.
        runs = np.split(mine, np.flatnonzero(np.diff(mine) != 1) + 1)
        size, done = np.dtype(self.dtype).itemsize, 0
        with self.path(number, ".tokens").open("rb") as file:
            for run in runs:
                first, last = int(ends[run[0]] - lengths[run[0]]), int(ends[run[-1]])
                low, high = max(start - done, 0), min(stop - done, last - first)
                done += last - first
                for at in range(first + low, first + high, _TOKENS_AT_ONCE):
                    count = min(_TOKENS_AT_ONCE, first + high - at)
                    file.seek(at * size)
                    yield np.frombuffer(file.read(count * size), self.dtype)


class ReadPart(NamedTuple):
    """Reads and cleans a part of a corpus, and stores its tokens and an index of its documents."""

    number: int  # of the part
    part: Part  # what is read
    how: Recipe  # how it is read and cleaned
    rule: Rule  # how documents are cut
    store: Store  # where the tokens and the index go
    tokenizer: str  # the folder of the vocabulary; "" to make only the index

    @property
    def bytes(self) -> int:
        return self.part.bytes

    @property
    def is_finished(self) -> bool:
        return self.store.path(self.number, ".json").exists()

    def run(self) -> None:
        config, counts = self.how.config, collections.Counter[str]()
        bad: dict[str, list[str]] = {}
        found: collections.deque[tuple[int, int, int, int]] = collections.deque()
        texts = self._texts(counts, bad, found)
        index = bytearray()

        def refuse(error: BadInputError) -> None:
            found.popleft()  # a fault is met in its document's place
            files = ", ".join(dict.fromkeys(piece.path for piece in self.part.pieces[:2]))
            files += ", …" * (len(self.part.pieces) > 2)
            self._count_bad(BadInputError(error.kind, f"{files}: {error}"), counts, bad)

        def read(tokenizer: Tokenizer) -> Iterator[str]:
            for text in texts:
                parts = text.split(PROMPT_END) if config.sequences == "prompted" else [text]
                counts["unknown"] += sum(map(tokenizer.count_lost, parts))
                yield text

        if not self.tokenizer:
            for _ in texts:
                index += _entry(found.popleft(), 0)
        else:
            tokenizer = _tokenizer(self.tokenizer)
            with written(self.store.path(self.number, ".tokens")) as file:
                kind, length = config.sequences, config.length
                sequences = Sequences(kind, tokenizer.bos_id, tokenizer.eos_id)
                for ids in encode_documents(tokenizer, read(tokenizer), kind, length, refuse):
                    if not len(ids):  # the vocabulary's own normalisation leaves nothing of it
                        found.popleft()
                        counts["empty"] += 1
                        continue
                    if tokenizer.unk_id is not None:
                        # Before EOS and padding, which may be the same token, are added.
                        counts["unknown"] += int(np.count_nonzero(ids == tokenizer.unk_id))
                    ids = ended(ids, length, sequences)
                    file.write(ids.astype(self.store.dtype).tobytes())
                    index += _entry(found.popleft(), len(ids) - 1)
        with written(self.store.path(self.number, ".npy")) as file:
            np.save(file, np.frombuffer(index, DOCUMENT))
        unknown = counts.pop("unknown", 0)
        record = {"counts": dict(counts), "bad": bad, "unknown": unknown}
        write_json(self.store.path(self.number, ".json"), record)

    def _texts(
        self,
        counts: "collections.Counter[str]",
        bad: dict[str, list[str]],
        found: "collections.deque[tuple[int, int, int, int]]",
    ) -> Iterator[str]:
        """Yields the documents; counts rows, and appends digest, row, length and split of each to `found`."""
        # A corpus's test split serves as its validation split.
        own = TRAIN if self.part.split == TRAIN else VALIDATION
        pairs = self.how.config.sequences == "prompted"
        for row, text in enumerate(self.how.rows(self.part, counts)):
            counts["rows"] += 1
            if isinstance(text, BadInputError):
                self._count_bad(text, counts, bad)
            elif not text:
                counts["of another subset" if text is None else "empty"] += 1
            else:
                for split, piece in self.rule.cut(text, own):
                    length = len(piece) - pairs  # `PROMPT_END` is no character of the text
                    found.append((digest(piece), row, length, SPLITS.index(split)))
                    yield piece

    def _count_bad(
        self, error: BadInputError, counts: "collections.Counter[str]", bad: dict[str, list[str]]
    ) -> None:
        counts["bad"] += 1
        counts[f"bad: {error.kind}"] += 1
        refuse_bad(error, counts["bad"], self.how.config.skip_bad)
        named = bad.setdefault(error.kind, [])
        named += [str(error)] * (len(named) < NAMED_OF_A_KIND)


def _entry(facts: tuple[int, int, int, int], tokens: int) -> bytes:
    """A document of the index; as a tuple it would take eight times as much memory."""
    text, row, characters, split = facts
    return struct.pack("<QIIIB", text, row, characters, tokens, split)


def _tokenizer(folder: str) -> Tokenizer:
    """The tokenizer that is in a folder now: another preparation may have put one of its own there."""
    return _loaded(folder, (as_path(folder) / CONFIG_FILE).read_bytes())


@functools.lru_cache(maxsize=1)
def _loaded(folder: str, described: bytes) -> Tokenizer:
    del described  # its digest, config and normalisation make the folder's content part of the key
    return load_tokenizer(folder)


class WriteShard(NamedTuple):
    """Writes a shard of sequences."""

    path: str  # of the shard
    record: str  # file of its size and digest, written when the shard is finished
    split: int  # number of its split
    # first, last: the range of its sequences within the split, `last` excluded.
    first: int
    last: int
    # For every part of the corpus, the number of tokens of the split up to its end.
    ends: tuple[int, ...]
    store: Store  # of the tokens
    # length, sequences: as for `packing.cut`.
    length: int
    sequences: Sequences
    # prefix, group: as for `builders.write_shard`.
    prefix: bytes
    group: int

    @property
    def bytes(self) -> int:
        row = self.length * np.dtype(self.store.dtype).itemsize
        return (self.last - self.first) * row

    @property
    def is_finished(self) -> bool:
        return as_path(self.record).exists() and as_path(self.path).exists()

    def run(self) -> None:
        from sdtt_jax.data import builders  # imports TFDS, which takes half a second

        records = self.last - self.first
        with written_whole(self.path) as partial:
            builders.write_shard(partial, self.prefix, self.rows(), records, self.group)
            facts = {"sha256": _sha256(partial), "bytes": partial.stat().st_size}
        write_json(self.record, facts)

    def rows(self) -> Iterator[np.ndarray]:
        """Its sequences `[length]`, of the store's dtype."""
        stride = chunk_length(self.length, self.sequences)
        stream = split_stream(
            self.store, self.split, self.ends, self.first * stride, self.last * stride
        )
        return cut(stream, self.length, self.sequences)


def split_stream(
    store: Store, split: int, ends: tuple[int, ...], start: int, stop: int
) -> Iterator[np.ndarray]:
    """Tokens `[start, stop)` of a split, given by its number, from all parts of a store.

    `ends` gives, for every part, the number of tokens of the split up to the part's end.
    """
    begins = (0, *ends[:-1])
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin < stop and end > start:
            yield from store.stream(number, split, max(start - begin, 0), stop - begin)


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing that appears under its name only once it is complete."""
    with written_whole(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()


def check_sha256(path: Path, expected: str) -> None:
    """Raises an error if a file is not the one that was written."""
    if _sha256(path) != expected:
        raise DataError(f"{path} is not what was written: its SHA-256 differs from the manifest's.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
