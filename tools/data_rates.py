"""Measures the preparation of data: its rate against the bare tokenizer's, memory, random access.

    python -m tools.data_rates rate --megabytes=8 --repeats=5
    python -m tools.data_rates memory --megabytes 20 100 500 --words
    python -m tools.data_rates index --records=100000000

The text is sentences of the World English Bible in random order, as JSON lines. Rates are per CPU
second, so that other programs on the machine matter little. How fast batches come during training
is measured by `python -m experiments.benchmark --suite=train,data
--config=experiments/configs/demo.py --batch_size=64`.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from experiments.benchmarking.memory import system_bytes
from experiments.cli.app import run_script
from sdtt_jax.config import positive, require
from sdtt_jax.data import DataConfig, TokenizerConfig, builders, engines, prepare, train_tokenizer
from sdtt_jax.data.corpora import documents
from sdtt_jax.data.embedded import bible_chapters
from sdtt_jax.data.loader import shuffled
from sdtt_jax.data.records import Records, Shard
from sdtt_jax.markdown import table
from sdtt_jax.paths import as_path
from sdtt_jax.threads import running

GPT2 = TokenizerConfig(kind="gpt2")
LENGTH, SENTENCES, TEXTS_AT_ONCE, SHARDS, READS = 1024, 40, 256, 100, 20_000
DEFAULT = "default: %(default)s"  # in the help of a flag


def write_corpus(path: Path, megabytes: float) -> DataConfig:
    """Writes `megabytes` of text as documents of 40 sentences, some 5 kB each; returns how to prepare it."""
    sentences = [s for chapter in bible_chapters() for s in re.split(r"(?<=[.;?!]) ", chapter)]
    rng, size = np.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            chosen = rng.integers(len(sentences), size=SENTENCES)
            text = " ".join(sentences[i] for i in chosen)
            size += file.write(json.dumps({"text": text}) + "\n")
    return DataConfig(str(path), length=LENGTH, wrap=True, deduplicate=True)


def words(path: Path) -> TokenizerConfig:
    """Makes a tokenizer of the text's words, which is many times as fast as one of subwords."""
    found = set(re.findall(r"\w+|[^\w\s]+", " ".join(bible_chapters())))
    vocabulary = {word: number for number, word in enumerate(["</s>", "[UNK]", *sorted(found)])}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    made.save(str(path))
    return TokenizerConfig(kind="file", file=str(path))


def rates(folder: Path, megabytes: float, repeats: int) -> list[tuple[float, float]]:
    """MB per CPU second of the bare tokenizer and of the whole preparation, in turns, in one process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = write_corpus(folder / "corpus.jsonl", megabytes)
    texts = list(documents(config))
    size = sum(len(text.encode()) for text in texts) / 1e6
    bare: Any = train_tokenizer(GPT2, ())
    encode = bare._tokenizer.encode_batch_fast

    def tokenise() -> None:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            encode(texts[start : start + TEXTS_AT_ONCE])

    def whole(number: int) -> None:
        prepare(config, GPT2, folder / f"data{number}", folder / f"tokenizer{number}")

    return [
        (size / _cpu_seconds(tokenise), size / _cpu_seconds(functools.partial(whole, turn)))
        for turn in range(repeats)
    ]


def peak_memory(
    folder: Path, megabytes: float, tokenizer: TokenizerConfig, workers: int
) -> tuple[int, float]:
    """The number of documents, and the peak memory of this process and its workers while preparing, MB."""
    config = write_corpus(folder / "corpus.jsonl", megabytes)
    config = dataclasses.replace(config, num_shards=4)
    largest, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.1):
            largest = max(largest, sum(map(_share_of_memory, _family(os.getpid()))))

    places = folder / "data", folder / "tokenizer"
    with running("memory", done, watch):
        info = prepare(config, tokenizer, *places, engine=engines.local(workers))
    return info.num_documents, largest


def random_access(folder: Path, records: int, reads: int) -> tuple[float, float, float]:
    """Seconds that opening takes, MB that it and the reads take, and a random record's median milliseconds.

    Records have 16 tokens and are in a hundred shards, which are one file linked a hundred times. `records`
    is the number of all records, a multiple of a hundred; `reads` is how many random ones are read.
    """
    rows = np.zeros((records // SHARDS, 16), np.uint16)
    rows[:, :2] = np.arange(len(rows), dtype=np.uint32).view(np.uint16).reshape(-1, 2)
    group = builders.group_size(records)
    builders.write_shard(folder / "one", b"", rows, len(rows), group)
    for number in range(SHARDS):
        os.link(folder / "one", folder / f"{number:03d}")
    size = (folder / "one").stat().st_size
    shards = [Shard(f"{number:03d}", "train", len(rows), size) for number in range(SHARDS)]
    places = shuffled(records, seed=0, step=0, batch_size=reads)
    before, began = _share_of_memory(os.getpid()), time.perf_counter()
    opened = Records(folder, shards, 16, rows.dtype)
    seconds = time.perf_counter() - began
    times = []
    for index in places:
        began = time.perf_counter()
        found = opened.read(np.array([index])).view(np.uint32)[0, 0]
        times.append(time.perf_counter() - began)
        assert found == index % len(rows)
    # Opening frees no memory, but the share falls whenever another process maps the same libraries.
    more = max(0.0, _share_of_memory(os.getpid()) - before)
    return seconds, more, 1e3 * float(np.median(times))


def _cpu_seconds(function: Callable[[], None]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def _family(process: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield process
    for tasks in as_path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:
            continue  # it has ended meanwhile
        yield from itertools.chain.from_iterable(_family(int(child)) for child in children)


def _share_of_memory(process: int) -> float:
    """A process's proportional share of resident memory, MB: what two share counts half for each."""
    return (system_bytes(f"/proc/{process}/smaps_rollup", "Pss") or 0) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    rate, memory, index = (parts.add_parser(name) for name in ("rate", "memory", "index"))
    rate.add_argument("--megabytes", type=float, default=8, help=DEFAULT)
    rate.add_argument("--repeats", type=int, default=5, help=DEFAULT)
    memory.add_argument("--megabytes", type=float, nargs="+", default=[20, 100, 500], help=DEFAULT)
    memory.add_argument("--workers", type=int, default=2, help=DEFAULT)
    memory.add_argument(
        "--words", action="store_true", help="Use a vocabulary of words instead of GPT-2's."
    )
    index.add_argument(
        "--records", type=int, default=100_000_000, help=f"A multiple of {SHARDS}; {DEFAULT}"
    )
    index.add_argument("--reads", type=int, default=READS, help=DEFAULT)
    given = parser.parse_args(arguments)
    for name, value in vars(given).items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, str | bool):
                positive(**{f"--{name}": number})
    if given.part == "index":
        require(
            given.records % SHARDS == 0,
            f"--records={given.records} must be a multiple of {SHARDS}, the number of shards; the nearest is "
            f"{max(1, round(given.records / SHARDS)) * SHARDS}.",
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = as_path(temporary)
        if given.part == "rate":
            found = np.array(rates(folder, given.megabytes, given.repeats))
            share, (bare, whole) = found[:, 1] / found[:, 0], np.median(found, axis=0)
            turns = f"{share.min():.0%} to {share.max():.0%}"
            columns = ["bare, MB/s", "whole, MB/s", "share", "in single turns"]
            rows = [[f"{bare:.2f}", f"{whole:.2f}", f"{np.median(share):.0%}", turns]]
        elif given.part == "memory":
            tokenizer = words(folder / "words.json") if given.words else GPT2
            columns, rows = ["MB of text", "documents", "MB of memory"], []
            for megabytes in given.megabytes:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    documents_, most = peak_memory(
                        as_path(own), megabytes, tokenizer, given.workers
                    )
                rows.append([f"{megabytes:g}", f"{documents_:,}", f"{most:.0f}"])
        else:
            seconds, more, milliseconds = random_access(folder, given.records, given.reads)
            columns = ["records", "opened, s", "MB", "a random record, ms"]
            rows = [[f"{given.records:,}", f"{seconds:.2f}", f"{more:.0f}", f"{milliseconds:.3f}"]]
        print(table(columns, rows))


if __name__ == "__main__":
    run_script(lambda _: main())
