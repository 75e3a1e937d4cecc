"""Reads a corpus in parts into a store on disk, and divides its documents into splits.

Texts are read once if the vocabulary is known beforehand. If it is learned from the train split, they are
read twice more before that: for the index that determines the split, and to learn the vocabulary.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.corpora import (
    SPLITS,
    TRAIN,
    Corpus,
    Recipe,
    find_corpus,
    recipe,
    refuse_bad,
)
from sdtt_jax.data.division import Index, Rule, choices, first_rule, make_rule, pieces
from sdtt_jax.data.engines import Engine, in_process
from sdtt_jax.data.reading import BadInputError, Part
from sdtt_jax.data.tasks import ReadPart, Store, written

# Wraps the items of a pass to report its progress. Arguments: items, purpose, the bytes or characters of all
# items (0 if unknown), and a function that returns those of one item.
Track = Callable[[Iterable[Any], str, int, Callable[[Any], int]], Iterable[Any]]
# Folders of an unfinished preparation.
INDEX, TOKENS = "index", "tokens"


def untracked(items: Iterable[Any], purpose: str, total: int, size: Callable[[Any], int]) -> Any:
    """Returns `items`: the `Track` that reports no progress."""
    del purpose, total, size
    return items


@dataclasses.dataclass(frozen=True)
class CorpusReading:
    """A corpus that is being read."""

    corpus: Corpus
    how: Recipe
    # Of its train split, then of its own split for evaluation, if it has one.
    parts: Sequence[Part]
    rule: Rule  # how documents are cut as they are read
    work: Path  # folder for intermediate files
    engine: Engine[Any]
    track: Track

    def run(self, tasks: Sequence[Any], purpose: str) -> None:
        """Runs all tasks that are not finished, and raises an error once there are too many bad rows."""
        finished: list[Any] = []
        todo: list[Any] = []
        for task in tasks:
            (finished if task.is_finished else todo).append(task)
        if finished:
            purpose += f" ({len(finished)} of {len(tasks)} parts are done)"
        size = sum(task.bytes for task in todo)
        bad = 0
        for task in itertools.chain(
            finished, self.track(self.engine(todo), purpose, size, lambda task: task.bytes)
        ):
            if isinstance(task, ReadPart):
                found = task.store.record(task.number)
                bad += found["counts"].get("bad", 0)
                for kind, named in found["bad"].items():
                    refuse_bad(BadInputError(kind, named[-1]), bad, self.how.config.skip_bad)


@dataclasses.dataclass(frozen=True)
class Ingested:
    """A corpus that was read and divided."""

    read: CorpusReading  # the corpus
    rule: Rule  # by which it is divided
    store: Store  # its tokens and its index

    def indices(self) -> Iterator[Index]:
        """The index of each part's documents."""
        return map(self.store.documents, range(len(self.read.parts)))

    def sides(self) -> Iterator[np.ndarray]:
        """The splits of each part's documents, as `division.choices` gives them."""
        return map(self.store.sides, range(len(self.read.parts)))

    def texts(self, split: str) -> Iterator[str]:
        """A pass over the documents of a split."""
        return pieces(self.read.how, self.read.rule, self.read.parts, self.sides(), split)

    def totals(self) -> dict[str, "collections.Counter[str]"]:
        """Counts of documents, characters and tokens (with EOS) of each split, and of "dropped" documents."""
        names = (*SPLITS, "dropped")
        totals = {name: collections.Counter[str]() for name in names}
        for index, sides in zip(self.indices(), self.sides(), strict=True):
            for side, name in enumerate(names):
                mine = index[sides == side]
                totals[name]["documents"] += len(mine)
                totals[name]["characters"] += int(mine["characters"].sum(dtype=np.int64))
                totals[name]["tokens"] += int(mine["tokens"].sum(dtype=np.int64)) + len(mine)
        return totals

    def ends(self, side: int) -> tuple[int, ...]:
        """How many tokens of a split there are up to the end of each part."""
        counts = (
            int((index["tokens"][sides == side].astype(np.int64) + 1).sum())
            for index, sides in zip(self.indices(), self.sides(), strict=True)
        )
        return tuple(itertools.accumulate(counts))


def start_reading(
    config: DataConfig, work: Path, engine: Engine[Any] = in_process, track: Track = untracked
) -> CorpusReading:
    """Finds a corpus and cuts it into parts; `work` is the folder for intermediate files."""
    corpus = find_corpus(config.corpus)
    how = recipe(config, corpus)  # refuses an unsuitable config before anything is fetched
    splits = (TRAIN, corpus.held_out) if corpus.held_out else (TRAIN,)
    parts = [part for split in splits for part in corpus.parts(split)]
    return CorpusReading(corpus, how, parts, first_rule(corpus, how, parts), work, engine, track)


def ingest(read: CorpusReading, tokenizer: tuple[Path, np.dtype] | None) -> Ingested:
    """Reads a corpus, stores its tokens and an index of its documents, and divides the documents.

    `tokenizer` is the vocabulary's folder and the dtype in which tokens are stored; None stores no tokens. A
    vocabulary that was learned from the train split of an earlier call is met by the same train split, even
    if pairs are skipped now that are too long for it.
    """
    first = store = Store(str(read.work / INDEX), "")
    where = ""
    if tokenizer is not None:
        store, where = Store(str(read.work / TOKENS), tokenizer[1].name), str(tokenizer[0])
    tasks = [
        ReadPart(number, part, read.how, read.rule, store, where)
        for number, part in enumerate(read.parts)
    ]
    read.run(tasks, "tokenising" if tokenizer else "reading the corpus")
    numbers, config = range(len(tasks)), read.how.config
    rows = [store.record(number)["counts"].get("rows", 0) for number in numbers]
    learned = first.path(0, ".json").exists()
    divided = functools.partial(map, (first if learned else store).documents, numbers)
    rule = make_rule(read.corpus, config.validation_fraction, read.rule, rows, divided)
    indices = functools.partial(map, store.documents, numbers)
    chosen = choices(rule, config.deduplicate, rows, indices)
    for number, sides in enumerate(chosen):
        with written(store.path(number, ".sides")) as file:
            file.write(sides.tobytes())
    return Ingested(read, rule, store)
