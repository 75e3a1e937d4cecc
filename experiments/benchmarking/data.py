"""The data suite: text to ids, ids to sequences, sequences to batches, in two variants.

`lean` is `sdtt_jax.data`: documents in batches through the tokenizer, NumPy packing, batches gathered from
ArrayRecord shards (held in memory, and once more read from the files). `naive` is the reference's way: text
after text, Python lists joined and sliced, rows looked up one by one.
"""

import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarking.cases import Case, Job, Log, Repetition
from experiments.settings import RunConfig, run_config
from sdtt_jax.data import DataConfig, Split, Tokenizer, open_split, prepare, train_tokenizer
from sdtt_jax.data.corpora import documents
from sdtt_jax.data.packing import encode_documents, pack
from sdtt_jax.ops.sequence_kinds import Sequences
from sdtt_jax.paths import as_path

PHASES = ("tokenise", "pack", "load", "load_from_files")
# Enough for a rate; a corpus of many GB is not read to its end.
MAX_CHARACTERS = 5_000_000
BATCHES = 50


def build_data(job: Job, log: Log) -> Case:
    """Reads the text and, for the lean variant, prepares a data folder; then each phase can be timed."""
    config = run_config(job.config)
    data, batch_size = config.data, config.distill.train.batch_size
    log("reading the corpus")
    texts = first_texts(data, MAX_CHARACTERS)
    log("learning the vocabulary")
    tokenizer = train_tokenizer(config.tokenizer, texts, data.normalize)
    sequences = Sequences(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, wrap=data.wrap)
    setup: dict[str, Any] = {"compile_s": 0.0, "memory": None}
    folder = tempfile.TemporaryDirectory()
    encode: Callable[..., Iterable[Any]] = naive_encode
    join: Callable[..., Iterable[Any]] = naive_pack
    loads: dict[str, Callable[..., None]] = {"load": _load_rows}
    if job.variant == "lean":
        log("preparing a data folder")
        splits, setup["prepare_s"] = _timed(_prepared_splits, config, texts, as_path(folder.name))
        encode, join = encode_documents, pack
        loads = {name: functools.partial(_load_split, split) for name, split in splits.items()}

    def repeat() -> Repetition:
        encoded, tokenise_s = _timed(lambda: list(encode(tokenizer, texts)))
        rows, pack_s = _timed(lambda: list(join(encoded, data.length, sequences)))
        load_s = {name: _timed(load, rows, batch_size)[1] for name, load in loads.items()}
        assert folder.name, "the folder lives as long as the case"
        return {
            "seconds": tokenise_s + pack_s + load_s["load"],
            "tokens": float(sum(len(ids) + 1 for ids in encoded)),
            "sequences": float(len(rows)),
            "loaded_tokens": float(BATCHES * batch_size * len(rows[0])),
            "tokenise": tokenise_s,
            "pack": pack_s,
            **load_s,
        }

    return Case(repeat, setup)


def first_texts(config: DataConfig, max_characters: int) -> list[str]:
    """The corpus's first documents, up to the one that crosses `max_characters`."""
    texts: list[str] = []
    count = 0
    for text in documents(config):
        texts.append(text)
        count += len(text)
        if count >= max_characters:
            break
    return texts


def naive_encode(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Ids of each text, with one call and one Python list per text."""
    return [tokenizer.encode(text).tolist() for text in texts]


def naive_pack(encoded: Sequence[list[int]], length: int, sequences: Sequences) -> list[list[int]]:
    """The sequences of `sdtt_jax.data.packing.pack`, made with Python lists."""
    bos, eos, wrap = sequences.bos_id, sequences.eos_id, sequences.wrap
    stream = list(itertools.chain.from_iterable([*ids, eos] for ids in encoded))
    size = length - 2 if wrap else length
    chunks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    return [[bos, *chunk, eos] for chunk in chunks] if wrap else chunks


def naive_batch(rows: Sequence[list[int]], indices: Iterable[int]) -> np.ndarray:
    """`[batch, length]` int32, row after row."""
    return np.stack([np.array(rows[index], np.int32) for index in indices])


def _prepared_splits(config: RunConfig, texts: Iterable[str], folder: Path) -> dict[str, Split]:
    """The train split of these texts, by phase: held in memory, and read from its files."""
    corpus, target = folder / "corpus.jsonl", folder / "data"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    # The texts are detokenised already, and the other phases pack them, pairs too.
    own: dict[str, Any] = {"text_field": "text", "detokenize": "none", "sequences": "packed"}
    data = dataclasses.replace(config.data, corpus=str(corpus), **own)
    prepare(data, config.tokenizer, target, folder / "tokenizer")
    return {
        "load": open_split(target, "train"),
        "load_from_files": open_split(target, "train", cache_bytes=0),
    }


def _load_split(split: Split, _rows: Sequence[Any], batch_size: int) -> None:
    for step in range(BATCHES):
        split.batch(0, step, batch_size)


def _load_rows(rows: Sequence[list[int]], batch_size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        naive_batch(rows, rng.integers(0, len(rows), batch_size))


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began
