"""Inspects a prepared corpus: counts, lengths, tokens, compression, sample texts, and its integrity."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.config import whole
from sdtt_jax.data.corpora import SPLITS, TRAIN
from sdtt_jax.data.loader import Split, open_split
from sdtt_jax.data.packing import text_ends
from sdtt_jax.data.records import made_with, read_info
from sdtt_jax.data.shards import MANIFEST_FILE
from sdtt_jax.data.tasks import check_sha256
from sdtt_jax.data.tokenizer import PREPARE_AGAIN, Tokenizer, load_tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.formats import read_json
from sdtt_jax.ops.sequence_kinds import Sequences
from sdtt_jax.paths import as_path

# How many tokens of a split are looked at, and in how many evenly spaced stretches.
MAX_TOKENS, STRETCHES = 4_000_000, 64
MOST_FREQUENT = 20


def inspect_data(
    data_dir: str | Path, tokenizer_dir: str | Path, records: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Inspects a prepared corpus.

    Counts cover everything. Lengths, tokens and compression are measured on at most four million tokens of
    each split; `looked_at` is their number, without padding. `records` random sequences of each split are
    decoded.

    Returns:
      `info` and `manifest` as they are stored ({} for data without a manifest), `digests` ("equal", or what
      is wrong), and for each split `sequences`, `tokens`, `looked_at`, `lengths` (documents by their number
      of tokens, up to each power of two), `frequent` (token, its text, its share), `used` (share of the
      vocabulary), `unknown` (share of the tokens), `bytes_per_token` and `texts`.
    """
    whole(0, records=records, seed=seed)
    data_dir = as_path(data_dir)
    content, tokenizer = read_info(data_dir), load_tokenizer(tokenizer_dir)
    if not made_with(tokenizer, content):
        raise DataError(
            f"{tokenizer_dir} is not the tokenizer of {data_dir}; give the folder that is."
        )
    path = data_dir / MANIFEST_FILE
    manifest = read_json(path) if path.exists() else {}
    data = content.get("data", {})
    kind, wrapped = data.get("sequences", "packed"), bool(data.get("wrap"))
    sequences = Sequences(kind, tokenizer.bos_id, tokenizer.eos_id, wrapped)
    return {
        "info": content["info"],
        "manifest": manifest,
        "digests": _digests(data_dir, manifest.get("shards", {})),
        "splits": {
            name: _split(open_split(data_dir, name, 0), tokenizer, sequences, records, seed)
            for name in SPLITS
        },
    }


def _digests(data_dir: Path, shards: dict[str, str]) -> str:
    if not shards:
        return "unknown: these data were prepared before there was a manifest"
    try:
        for name, sha256 in shards.items():
            check_sha256(data_dir / name, sha256)
    except (DataError, OSError) as error:
        return str(error)
    return "equal"


def _split(
    split: Split, tokenizer: Tokenizer, sequences: Sequences, records: int, seed: int
) -> dict[str, Any]:
    lengths = collections.Counter[int]()
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    looked_at = size = decoded = 0
    # Only documents that lie entirely within a stretch are measured; the first stretch begins with one.
    before = [-1]
    for rows in _stretches(split):
        rows = rows[:, 1:-1] if sequences.wrap else rows
        ended, padding = text_ends(rows, sequences)
        stream = rows[~padding]
        if stream.max(initial=0) >= tokenizer.vocab_size:
            raise DataError(
                f"The {split.name} split holds MASK, token {tokenizer.mask_id}, which a text spelt and no "
                f"model can predict; {PREPARE_AGAIN}."
            )
        counts += np.bincount(stream, minlength=tokenizer.vocab_size)
        looked_at += len(stream)
        ends, before = [*before, *np.flatnonzero(ended[~padding])], []
        bins = np.ceil(np.log2(np.maximum(np.diff(ends) - 1, 1))).astype(int)
        lengths.update(2 ** int(b) for b in bins)
        some = stream[: 32 * split.length]
        decoded += len(some)
        size += len(tokenizer.decode(some, separator="").encode())
    # An unk that is EOS cannot be distinguished from the end of a document.
    unk = None if tokenizer.unk_id == tokenizer.eos_id else tokenizer.unk_id
    # Not what packing sets: EOS, and the BOS between a prompt and its completion.
    packed = tokenizer.bos_id, tokenizer.eos_id
    frequent = [int(i) for i in np.argsort(-counts, kind="stable") if i not in packed]
    chosen = np.random.default_rng(seed).choice(len(split), min(records, len(split)), replace=False)
    return {
        "sequences": len(split),
        "tokens": len(split) * split.length,
        "looked_at": looked_at,
        "lengths": {str(length): lengths[length] for length in sorted(lengths)},
        "frequent": [
            [i, tokenizer.pieces([i])[0], float(counts[i] / looked_at)]
            for i in frequent[:MOST_FREQUENT]
            if counts[i]
        ],
        "used": float(np.count_nonzero(counts) / tokenizer.vocab_size),
        "unknown": 0.0 if unk is None else float(counts[unk] / looked_at),
        "bytes_per_token": size / decoded,
        "texts": [tokenizer.decode(row) for row in split.gather(np.sort(chosen))],
    }


def _stretches(split: Split) -> Iterator[np.ndarray]:
    """Consecutive sequences `[n, length]`, spread evenly; all if there are few."""
    rows = MAX_TOKENS // split.length
    if len(split) <= rows:
        yield split.gather(np.arange(len(split)))
        return
    size = max(1, rows // STRETCHES)
    starts = np.unique(np.linspace(0, len(split) - size, STRETCHES).astype(int))
    yield from (split.gather(np.arange(start, start + size)) for start in starts)


def summary(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The results of `inspect_data` as rows of a table: a name, and a value for each split."""
    stored = found["manifest"].get("splits", {})
    splits = [stored.get(name, {}) | found["splits"][name] for name in SPLITS]
    rows = (
        ("documents", "documents", ","),
        ("characters", "characters", ","),
        ("sequences", "sequences", ","),
        ("tokens in sequences", "tokens", ","),
        ("looked at", "looked_at", ","),
        ("bytes per token", "bytes_per_token", ".3f"),
        ("vocabulary used", "used", ".1%"),
        ("unknown tokens", "unknown", ".4%"),
    )
    return [
        (name, *(format(split[key], form) if key in split else "?" for split in splits))
        for name, key, form in rows
    ]


def taken_away(found: dict[str, Any]) -> list[tuple[str, str]]:
    """How many rows each filter removed, as rows of a table."""
    manifest = found["manifest"]
    if not manifest:
        return []
    rows = [("rows read", f"{manifest['corpus']['rows']:,}")]
    return rows + [(name, f"{count:,}") for name, count in manifest["taken_away"].items()]


def most_frequent(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The most frequent tokens of the train split: id, text, share."""
    frequent = found["splits"][TRAIN]["frequent"]
    return [(str(token), repr(text), f"{share:.2%}") for token, text, share in frequent]
