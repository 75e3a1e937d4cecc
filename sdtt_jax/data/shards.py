"""The last step of a preparation: writes shards of sequences, their info and the manifest."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.data.config import DataConfig
from sdtt_jax.data.corpora import SPLITS, TRAIN, VALIDATION, files_read
from sdtt_jax.data.ingest import CorpusReading, Ingested, ingest
from sdtt_jax.data.packing import chunk_length, text_ends
from sdtt_jax.data.records import Shard
from sdtt_jax.data.tasks import NAMED_OF_A_KIND, WriteShard
from sdtt_jax.data.tokenizer import Tokenizer
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.ops.sequence_kinds import Sequences
from sdtt_jax.paths import as_path

MANIFEST_FILE = "manifest.json"
# Folders of an unfinished preparation.
SHARDS, TOKENIZER = "shards", "tokenizer"
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a prepared data folder holds."""

    vocab_size: int  # number of ids without MASK; `mask_id == vocab_size`
    length: int  # tokens in a sequence
    # bos_id, eos_id: the ids that packing sets.
    bos_id: int
    eos_id: int
    # num_train, num_validation: sequences.
    num_train: int
    num_validation: int
    num_documents: int  # documents of both splits; one whose tail is held out counts in both
    num_characters: int  # characters of both splits, after normalisation
    characters_per_token: float  # in the train split, EOS included, padding not
    fingerprint: str  # SHA-256 over all sequences, in order; equal fingerprints, equal batches
    # "3 of 5 files", with what was not read, if the text is a folder of the user's; else "".
    files: str = ""
    # Unk tokens, lost characters and `letters_lost` in all documents, duplicates included.
    num_unknown: int = 0


def write_shards(read: CorpusReading, tokenizer: Tokenizer, partial: Path) -> dict[str, Any]:
    """Writes the shards, the metadata of TFDS and the manifest into a data folder under construction.

    Returns the content of `info.json`, without the configs.
    """
    from sdtt_jax.data import builders  # imports TFDS, which takes half a second

    config = read.how.config
    # Ids of any vocabulary up to GPT-2's fit 16 bits, which halves the shards.
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    division = ingest(read, (read.work / TOKENIZER, dtype))
    totals = division.totals()
    sequences = Sequences(config.sequences, tokenizer.bos_id, tokenizer.eos_id, config.wrap)
    prefix = builders.record_prefix(config.length, dtype)
    tasks: list[WriteShard] = []
    lengths: dict[str, list[int]] = {}
    for side, split in enumerate(SPLITS):
        is_fraction = split == VALIDATION and division.rule.kind != "own"
        tokens = totals[split]["tokens"]
        records = _num_sequences(config, split, tokens, sequences, is_fraction)
        group, ends = builders.group_size(records), division.ends(side)
        shared = ends, division.store, config.length, sequences, prefix, group
        stops = builders.shard_ends(records, config.num_shards)
        ranges = list(itertools.pairwise((0, *stops)))
        lengths[split] = [stop - start for start, stop in ranges]
        for number, (start, stop) in enumerate(ranges):
            name = builders.shard_name(split, number, len(ranges))
            path, record = partial / builders.FOLDER / name, read.work / SHARDS / f"{name}.json"
            tasks.append(WriteShard(str(path), str(record), side, start, stop, *shared))
    read.run(tasks, "writing the shards")
    size = len(prefix) + config.length * dtype.itemsize
    builders.write_info(partial, config.length, dtype, lengths, size)
    shards, digests = [], {}
    for task in tasks:
        found, name = read_json(task.record), str(as_path(task.path).relative_to(partial))
        digests[name] = found["sha256"]
        shards.append(Shard(name, SPLITS[task.split], task.last - task.first, found["bytes"]))
    manifest = _manifest(division, totals, tokenizer, lengths, digests)
    write_json(partial / MANIFEST_FILE, manifest)
    return {
        "info": dataclasses.asdict(_info(division, totals, tokenizer, lengths, tasks)),
        "dtype": dtype.name,
        "tokenizer_digest": tokenizer.digest,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }


def _num_sequences(
    config: DataConfig, split: str, tokens: int, sequences: Sequences, is_fraction: bool
) -> int:
    """How many sequences the tokens of a split make; `is_fraction` if it is `data.validation_fraction`."""
    count = tokens // chunk_length(config.length, sequences)
    require(
        tokens > 0,
        f"data.corpus: the {split} split of {config.corpus} has no text but what is blank, bad or repeated; "
        "give another.",
    )
    require(
        count > 0,
        f"data.length {config.length} is longer than the whole {split} split of {tokens} tokens; choose a "
        f"shorter one{' or a larger data.validation_fraction' if is_fraction else ''}.",
    )
    return count


def _info(
    division: Ingested,
    totals: dict[str, "collections.Counter[str]"],
    tokenizer: Tokenizer,
    lengths: dict[str, list[int]],
    tasks: Sequence[WriteShard],
) -> DataInfo:
    read, train, validation = division.read, totals[TRAIN], totals[VALIDATION]
    fingerprint, padding = _fingerprint(tasks)
    return DataInfo(
        vocab_size=tokenizer.vocab_size,
        length=read.how.config.length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        num_train=sum(lengths[TRAIN]),
        num_validation=sum(lengths[VALIDATION]),
        num_documents=train["documents"] + validation["documents"],
        num_characters=train["characters"] + validation["characters"],
        characters_per_token=train["characters"] / (train["tokens"] - padding),
        fingerprint=fingerprint,
        files=files_read(read.corpus),
        num_unknown=sum(division.store.record(i).get("unknown", 0) for i in range(len(read.parts))),
    )


def _fingerprint(tasks: Sequence[WriteShard]) -> tuple[str, int]:
    """SHA-256 over all sequences, in order, and how many tokens of the train split's are padding."""
    digest, padding = hashlib.sha256(), 0
    for side, mine in itertools.groupby(tasks, lambda task: task.split):
        digest.update(SPLITS[side].encode())
        rows = itertools.chain.from_iterable(task.rows() for task in mine)
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            block = np.stack(some)
            digest.update(block.astype("<i4").tobytes())
            if SPLITS[side] == TRAIN:
                padding += int(text_ends(block, tasks[0].sequences)[1].sum())
    return digest.hexdigest(), padding


def _manifest(
    division: Ingested,
    totals: dict[str, "collections.Counter[str]"],
    tokenizer: Tokenizer,
    lengths: dict[str, list[int]],
    shards: dict[str, str],
) -> dict[str, Any]:
    """The manifest: what was read, what each filter removed, and what was written."""
    corpus, how, parts = division.read.corpus, division.read.how, division.read.parts
    counts = collections.Counter[str]()
    named: dict[str, list[str]] = {}
    for number in range(len(parts)):
        record = division.store.record(number)
        counts.update(record["counts"])
        for kind, messages in record["bad"].items():
            named[kind] = (named.get(kind, []) + messages)[:NAMED_OF_A_KIND]
    rows, _ = counts.pop("rows"), counts.pop("bad", 0)
    digest = hashlib.sha256()
    for index in division.indices():
        digest.update(index["digest"].tobytes())
    return {
        "corpus": {
            "name": corpus.name,
            "licence": corpus.licence,
            "sources": {
                split: {
                    "files": len(paths := dict.fromkeys(p.path for p in pieces)),
                    "bytes": sum(piece.bytes for piece in pieces),
                    "first": next(iter(paths)),
                }
                for split, mine in itertools.groupby(parts, lambda part: part.split)
                for pieces in [[piece for part in mine for piece in part.pieces]]
            },
            "rows": rows,
            "sha256_of_digests": digest.hexdigest(),
        },
        "cleaning": {"detokenize": how.detokenize, "normalize": how.config.normalize},
        "taken_away": dict(sorted(counts.items())) | {"duplicates": totals["dropped"]["documents"]},
        "bad_input": named,
        "division": division.rule._asdict(),
        "splits": {
            split: dict(totals[split]) | {"sequences": sum(lengths[split])} for split in SPLITS
        },
        "tokenizer": {"kind": tokenizer.config.kind, "digest": tokenizer.digest},
        "shards": shards,
    }
