"""How the benchmark prepares texts. Oracles: the library's own data path, tokens counted by hand."""

import json

import numpy as np
import pytest

from experiments.benchmarking.cases import Job
from experiments.benchmarking.data import first_texts, naive_batch, naive_encode, naive_pack
from experiments.benchmarking.worker import Worker
from experiments.configs.smoke import smoke
from sdtt_jax.config import changed, to_mapping
from sdtt_jax.data import DataConfig, TokenizerConfig, train_tokenizer
from sdtt_jax.data.packing import encode_documents, pack
from sdtt_jax.ops.sequence_kinds import Sequences
from tests.experiments.processes import call

SMALLEST = (
    "--config=experiments/configs/smoke.py",
    "--config.model.num_layers=1",
    "--config.data.length=32",
    "--repeats=2",
)


@pytest.mark.parametrize("wrap", [True, False])
def test_naive_data_path_gives_the_same_sequences(wrap):
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    texts = ["In the beginning", " was the word, and", "so on; and so on. " * 9]
    sequences = Sequences(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, wrap=wrap)
    ours = np.stack(list(pack(encode_documents(tokenizer, texts), 7, sequences)))
    rows = naive_pack(naive_encode(tokenizer, texts), 7, sequences)
    np.testing.assert_array_equal(ours, rows)
    batch = naive_batch(rows, [2, 0])
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(batch, ours[[2, 0]])


def test_a_large_corpus_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    texts = first_texts(DataConfig(corpus=str(path)), 13)
    assert texts == ["text 0", "text 1", "text 2"]


def test_pairs_are_timed_as_other_texts_are(tmp_path):
    """The lean variant died of a field that nobody had set. Oracle: tokens counted by hand, with EOS."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"a": "what?", "b": f"it is {n:02}"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"corpus": str(path), "text_field": "a>b", "sequences": "prompted"}
    config = changed(smoke(), data={"normalize": "none", "length": 8} | fields)
    for variant in ("lean", "naive"):
        with Worker(Job("data", variant, to_mapping(config), 31, 1)) as worker:
            worker.prepare(print)
            found = worker.run()
        assert (found["tokens"], found["sequences"]) == (30 * 15, 30 * 15 // 8)


def test_data_suite(tmp_path):
    corpus, output = tmp_path / "c.txt", tmp_path / "b.json"
    corpus.write_text("In the beginning was the word. " * 2000)
    done = call(
        "benchmark",
        *SMALLEST,
        "--suite=data",
        f"--config.data.corpus={corpus}",
        "--config.tokenizer.kind=gpt2",
        f"--output={output}",
    )
    assert done.status == 0, done.stderr
    data = json.loads(output.read_text())["data"]
    assert data["tokens"] > 10_000
    for phase in ("tokenise", "pack", "load"):
        assert data[phase]["lean_tokens_per_s"] > 0
        assert data[phase]["naive_tokens_per_s"] > 0
    assert 0 < data["load_from_files"]["lean_s_per_batch"] < 1
    assert "load from files" in done.stdout
