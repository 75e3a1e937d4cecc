"""Which documents are trained on, which are held out, and which are dropped as duplicates.

This is decided from an index with 21 bytes for each document, so that the texts are read only once.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sdtt_jax.data.corpora import SPLITS, TRAIN, VALIDATION, Corpus, Recipe, no_text
from sdtt_jax.data.reading import Part
from sdtt_jax.errors import DataError

# Below this number of different documents, whole documents are too coarse a unit to hold out.
FEWEST_DOCUMENTS = 20
# Digests that are compared at a time; a larger corpus takes several passes over its index.
DIGESTS_AT_ONCE = 2**23
# A document: digest of its cleaned text, its number among the rows of its part, its characters, its tokens as
# `packing.ended` gives them, less one (EOS, or the last token of a document that fills its sequences), and
# the split (its number in SPLITS) that its part belongs to or that it was cut for.
DOCUMENT = np.dtype(
    [("digest", "<u8"), ("row", "<u4"), ("characters", "<u4"), ("tokens", "<u4"), ("split", "u1")]
)
DROPPED = len(SPLITS)  # the choice for a document that is in no split
_SPACE = re.compile(r"\s+")
# No word is longer than this many characters, or this share of a document.
_WORD, _WORD_SHARE = 100, 0.01

Index = np.ndarray  # [documents] of DOCUMENT


class Rule(NamedTuple):
    """How a corpus is divided."""

    # `own` (the corpus has a split for evaluation), or what is held out: `tails` (the end of every document),
    # `rows` (the last ones) or `digests` (the documents with the smallest digests: which they are does not
    # depend on their order, and copies of a document never land on both sides).
    kind: str
    value: int = 0  # for `rows` the first row that is held out, for `digests` the largest digest
    fraction: float = 0.0  # for `tails`, the share of a document that is held out

    def cut(self, text: str, split: str) -> Iterator[tuple[str, str]]:
        """A document's pieces, each with its split; `split` is the split of the document's part."""
        if self.kind != "tails":
            yield split, text
            return
        at = _cut_position(text, self.fraction)
        for name, piece in ((TRAIN, text[:at].rstrip()), (VALIDATION, text[at:].lstrip())):
            if piece:
                yield name, piece


def digest(text: str) -> int:
    """64-bit digest of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def first_rule(corpus: Corpus, how: Recipe, parts: Iterable[Part]) -> Rule:
    """How documents are cut as they are read: not at all, unless the corpus has only a few.

    Reads only as many documents as it takes to decide that.

    Raises:
      DataError: there is no text, or so little that one of the splits would be empty.
    """
    config = how.config
    rule = Rule("tails", fraction=config.validation_fraction)
    seen: set[int] = set()
    splits: set[str] = set()
    for text in how.texts(parts):
        seen.add(digest(text))
        splits |= {split for split, _ in rule.cut(text, TRAIN)}
        if corpus.held_out is not None or len(seen) >= FEWEST_DOCUMENTS:
            return Rule("own")
    if not seen:
        raise no_text(config)
    if config.sequences == "prompted":  # a pair cannot be cut
        raise DataError(
            f"data.corpus has only {len(seen)} different pairs; data.sequences='prompted' needs "
            f"{FEWEST_DOCUMENTS} or more, of which some are held out."
        )
    for split in SPLITS:
        if split not in splits:
            raise DataError(
                f"data.corpus is too small to be divided: no text is left for the {split} split. It has only "
                f"{len(seen)} different documents, and below {FEWEST_DOCUMENTS} the end of each is held out "
                f"(data.validation_fraction={config.validation_fraction}); give longer ones, or "
                f"{FEWEST_DOCUMENTS} or more."
            )
    return rule


def make_rule(
    corpus: Corpus,
    fraction: float,
    first: Rule,
    rows: Sequence[int],
    indices: Callable[[], Iterable[Index]],
) -> Rule:
    """The rule by which a corpus is divided, given the rule from `first_rule`.

    `fraction` is `data.validation_fraction`; `rows` holds the number of rows of each part, including bad and
    empty ones; `indices` starts a pass over the indices of the parts.
    """
    if corpus.held_out is not None or first.kind == "tails":
        return first
    if corpus.held_out_rows:
        total = sum(rows)
        enough = total >= 10 * corpus.held_out_rows
        held_out = corpus.held_out_rows if enough else round(total * fraction)
        return Rule("rows", total - max(1, held_out))
    return Rule("digests", _smallest_digests(indices, fraction))


def _smallest_digests(indices: Callable[[], Iterable[Index]], fraction: float) -> int:
    """The quantile of the distinct digests below which the given fraction lies; 0 if there are none."""
    counts = [len(different) for different in _different(indices)]
    total = sum(counts)
    wanted = max(1, min(round(total * fraction), total - 1))
    for count, different in zip(counts, _different(indices), strict=True):
        if wanted <= count:
            return int(different[wanted - 1])
        wanted -= count
    return 0  # every pair was skipped


def _different(indices: Callable[[], Iterable[Index]]) -> Iterator[np.ndarray]:
    """The distinct digests in ascending order, one range at a time."""
    for shift, bucket in _buckets(indices):
        found = [index["digest"][index["digest"] >> shift == bucket] for index in indices()]
        yield np.unique(np.concatenate(found))


def _buckets(indices: Callable[[], Iterable[Index]]) -> Iterator[tuple[np.uint64, int]]:
    """Ranges of digests by their leading bits, about DIGESTS_AT_ONCE in each: `(64 - bits, number)`."""
    total = sum(len(index) for index in indices())
    bits = max(1, (total // DIGESTS_AT_ONCE).bit_length())
    for bucket in range(2**bits):
        yield np.uint64(64 - bits), bucket


def choices(
    rule: Rule, deduplicate: bool, rows: Sequence[int], indices: Callable[[], Iterable[Index]]
) -> Iterator[np.ndarray]:
    """The split of every document, or DROPPED: uint8 `[documents]` for each part.

    `rows` and `indices` are as for `make_rule`.
    """
    dropped = _copies(rule, rows, indices) if deduplicate else None
    first, done = 0, 0
    for index, count in zip(indices(), rows, strict=True):
        chosen = _sides(rule, index, first)
        if dropped is not None:
            chosen[dropped[done : done + len(index)]] = DROPPED
        yield chosen
        first, done = first + count, done + len(index)


def _sides(rule: Rule, index: Index, first_row: int) -> np.ndarray:
    if rule.kind == "rows":
        return (index["row"].astype(np.int64) + first_row >= rule.value).astype(np.uint8)
    if rule.kind == "digests":
        return (index["digest"] <= np.uint64(rule.value)).astype(np.uint8)
    return index["split"].copy()


def _copies(rule: Rule, rows: Sequence[int], indices: Callable[[], Iterable[Index]]) -> np.ndarray:
    """Which documents of the train split also occur earlier in it or in the held-out split: bool `[all]`."""
    dropped = np.zeros(sum(len(index) for index in indices()), bool)
    for shift, bucket in _buckets(indices):
        digests, places, held_out = [], [], []
        first, done = 0, 0
        for index, count in zip(indices(), rows, strict=True):
            inside = np.flatnonzero(index["digest"] >> shift == bucket)
            digests.append(index["digest"][inside])
            places.append(done + inside)
            held_out.append(_sides(rule, index[inside], first) != 0)
            first, done = first + count, done + len(index)
        digest_, place = np.concatenate(digests), np.concatenate(places)
        train = ~np.concatenate(held_out)
        # Held-out documents come first, so that the train split's document is the copy.
        order = np.lexsort((place, train, digest_))
        again = np.zeros(len(order), bool)
        again[1:] = digest_[order][1:] == digest_[order][:-1]
        dropped[place[order][again & train[order]]] = True
    return dropped


def pieces(
    how: Recipe, rule: Rule, parts: Iterable[Part], chosen: Iterable[np.ndarray], split: str
) -> Iterator[str]:
    """The texts of a split, in order; bad rows, which were counted before, are skipped.

    `chosen` are the splits of each part's documents, from `choices`.

    Raises:
      DataError: a part has another number of documents than when it was first read.
    """
    number = SPLITS.index(split)
    for part, sides in zip(parts, chosen, strict=True):
        documents = (row for row in how.rows(part) if isinstance(row, str) and row)
        cut = (piece for text in documents for _, piece in rule.cut(text, part.split))
        for text, side in itertools.zip_longest(cut, sides):
            if text is None or side is None:
                where = ", ".join(dict.fromkeys(piece.path for piece in part.pieces[:2]))
                raise DataError(
                    f"{where}: the text has changed while it was prepared; leave the files as they are, and "
                    "begin again in another folder."
                )
            if side == number:
                yield text


def _cut_position(text: str, fraction: float) -> int:
    """Before the next space, unless the script has none: then the next one may be far away."""
    wanted = max(1, round(len(text) * (1 - fraction)))
    space, word = _SPACE.search(text, wanted), max(_WORD, _WORD_SHARE * len(text))
    if space and space.end() < len(text) and space.start() - wanted <= word:
        return space.start()
    return wanted
