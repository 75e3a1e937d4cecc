"""The data suite: text to ids, ids to sequences, sequences to batches, in two variants.

`lean` is `sdtt_jax.data`: documents in batches through the tokenizer, NumPy packing, batches gathered from
ArrayRecord shards (held in memory, and once more read from the files). `naive` is the reference's way: text
after text, Python lists joined and sliced, rows looked up one by one.
"""

import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarking.cases import Case, Facts, Job, Log
from experiments.settings import RunConfig, run_config
from sdtt_jax.data import DataConfig, Split, Tokenizer, open_split, prepare, train_tokenizer
from sdtt_jax.data.corpora import documents
from sdtt_jax.data.packing import encode_documents, pack

PHASES = ("tokenise", "pack", "load", "load_from_files")
# Enough for a rate; a corpus of many GB is not read to its end.
MAX_CHARACTERS = 5_000_000
BATCHES = 50


def build_data(job: Job, log: Log) -> Case:
    """Reads the text and, for the lean variant, prepares a data folder; then each phase can be timed."""
    config = run_config(job.config)
    log("reading the corpus")
    texts = first_texts(config.data, MAX_CHARACTERS)
    if job.variant == "lean":
        return _lean(config, texts, log)
    return _naive(config, texts, log)


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
    """Ids of each text, one call and one Python list a text."""
    return [tokenizer.encode(text).tolist() for text in texts]


def naive_pack(
    encoded: Sequence[list[int]], *, length: int, wrap: bool, bos_id: int, eos_id: int
) -> list[list[int]]:
    """The sequences of `sdtt_jax.data.packing.pack`, by lists."""
    stream = list(itertools.chain.from_iterable([*ids, eos_id] for ids in encoded))
    size = length - 2 if wrap else length
    chunks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    return [[bos_id, *chunk, eos_id] for chunk in chunks] if wrap else chunks


def naive_batch(rows: Sequence[list[int]], indices: Iterable[int]) -> np.ndarray:
    """`[batch, length]` int32, row after row."""
    return np.stack([np.array(rows[index], np.int32) for index in indices])


def _lean(config: RunConfig, texts: list[str], log: Log) -> Case:
    data, batch_size = config.data, config.distill.train.batch_size
    folder = tempfile.TemporaryDirectory()
    corpus = Path(folder.name) / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    log("preparing a data folder")
    # The texts are detokenised already.
    whole = dataclasses.replace(data, corpus=str(corpus), text_field="text", detokenize="none")
    target = Path(folder.name) / "data"
    _, prepare_s = _timed(
        lambda: prepare(whole, config.tokenizer, target, Path(folder.name) / "tokenizer")
    )
    tokenizer = train_tokenizer(config.tokenizer, texts, data.normalize)
    cached, files = open_split(target, "train"), open_split(target, "train", cache_bytes=0)

    def load(split: Split) -> None:
        for step in range(BATCHES):
            split.batch(0, step, batch_size)

    def repeat() -> Facts:
        encoded, tokenise = _timed(lambda: list(encode_documents(tokenizer, texts)))
        rows, packing = _timed(lambda: list(pack(encoded, **_packing(config, tokenizer))))
        seconds = {"tokenise": tokenise, "pack": packing, "load": _timed(load, cached)[1]}
        assert folder.name, "the folder lives as long as the case"
        from_files = _timed(load, files)[1]
        return _facts(encoded, rows, BATCHES * batch_size, **seconds, load_from_files=from_files)

    return Case(repeat, {"compile_s": 0.0, "memory": None, "prepare_s": prepare_s})


def _naive(config: RunConfig, texts: list[str], log: Log) -> Case:
    log("learning the vocabulary")
    batch_size = config.distill.train.batch_size
    tokenizer = train_tokenizer(config.tokenizer, texts, config.data.normalize)

    def repeat() -> Facts:
        encoded, tokenise = _timed(lambda: naive_encode(tokenizer, texts))
        rows, packing = _timed(lambda: naive_pack(encoded, **_packing(config, tokenizer)))
        rng = np.random.default_rng(0)

        def load() -> None:
            for _ in range(BATCHES):
                naive_batch(rows, rng.integers(0, len(rows), batch_size))

        seconds = {"tokenise": tokenise, "pack": packing, "load": _timed(load)[1]}
        return _facts(encoded, rows, BATCHES * batch_size, **seconds)

    return Case(repeat, {"compile_s": 0.0, "memory": None})


def _packing(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "length": config.data.length,
        "wrap": config.data.wrap,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }


def _facts(encoded: Sequence[Any], rows: Sequence[Any], loaded: int, **phases: float) -> Facts:
    """What a repetition reports: how much there was, and the seconds of each phase."""
    return {
        # Both variants have these phases.
        "seconds": phases["tokenise"] + phases["pack"] + phases["load"],
        "tokens": float(sum(len(ids) + 1 for ids in encoded)),
        "sequences": float(len(rows)),
        "loaded_tokens": float(loaded * len(rows[0])),
        **phases,
    }


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began
