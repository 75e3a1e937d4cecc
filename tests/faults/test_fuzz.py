"""Loaders of files that others made. Oracle: an error of ours that names the file, or a sound result.

Deterministic (derandomized), with few examples each: what they once found is now an explicit example.
"""

import contextlib
import json
import shutil
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments.configs.smoke import smoke
from experiments.stages.workdir import claim_workdir
from sdtt_jax.checkpoints.digests import canonical_sha256
from sdtt_jax.checkpoints.store import load_params, save_params
from sdtt_jax.data import DataConfig, load_tokenizer, open_split
from sdtt_jax.data.corpora import documents
from sdtt_jax.errors import CheckpointError, DataError, UserError
from sdtt_jax.interchange.safetensors import Tensors, write_tensors
from sdtt_jax.reporting import write_report
from tests.checkpoints.stored import state_at
from tests.data.conftest import chapters, prepared, write_jsonl  # noqa: F401 - fixtures

few = hypothesis.settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*coroutine.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@contextlib.contextmanager
def naming(kind, name):
    """Lets an error of this kind pass if it names the file."""
    try:
        yield
    except kind as error:
        if str(name) not in str(error):
            raise


# A tensor that ends at infinity.
ENDLESS = b'{"a": {"data_offsets": [0, 1e400]}}'
DEEP = b"[" * 100_000
LONG = b"9" * 5_000

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def edits(draw):
    """A function of bytes that cuts, flips or inserts here and there."""
    changes = draw(
        st.lists(
            st.tuples(
                st.floats(0, 1, exclude_max=True),
                st.sampled_from(["cut", "flip", "insert", "drop"]),
                st.binary(min_size=1, max_size=4),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def edit(content: bytes) -> bytes:
        for share, kind, new in changes:
            at = int(share * len(content))
            content = {
                "cut": content[:at],
                "flip": content[:at] + new + content[at + len(new) :],
                "insert": content[:at] + new + content[at:],
                "drop": content[:at] + content[at + len(new) :],
            }[kind]
        return content

    return edit


def replaced(content, draw_path, value):
    """A JSON tree with one of its nodes exchanged: `draw_path` picks a child at each level, or stops."""
    if not draw_path or not isinstance(content, dict | list) or not content:
        return value
    keys = sorted(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[draw_path[0] % len(keys)]
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[key] = replaced(content[key], draw_path[1:], value)
    return copy


paths = st.lists(st.integers(0, 7), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def valid_safetensors(tmp_path_factory):
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    write_tensors(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)})
    return path


@few
@hypothesis.given(edits())
def test_safetensors_edited(valid_safetensors, edit):
    read_edited(valid_safetensors, edit(valid_safetensors.read_bytes()))


@few
@hypothesis.given(paths, anything)
def test_safetensors_edited_headers(valid_safetensors, path, value):
    content = valid_safetensors.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(replaced(json.loads(content[8 : 8 + size]), path, value)).encode()
    read_edited(valid_safetensors, struct.pack("<Q", len(header)) + header + content[8 + size :])


@few
@hypothesis.given(st.binary(max_size=64))
@hypothesis.example(struct.pack("<Q", 2**63) + b"{}")
@hypothesis.example(struct.pack("<Q", len(DEEP)) + DEEP)
@hypothesis.example(struct.pack("<Q", len(ENDLESS)) + ENDLESS)
def test_safetensors_any_bytes(valid_safetensors, content):
    read_edited(valid_safetensors, content)


def read_edited(valid_safetensors, content):
    path = valid_safetensors.with_name("edited.safetensors")
    path.write_bytes(content)
    with naming(CheckpointError, path.name):
        tensors = dict(Tensors(path))
        assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())


@few
@hypothesis.given(
    st.lists(
        anything.map(lambda v: json.dumps(v).encode())
        | st.text(max_size=8).map(lambda t: json.dumps({"text": t}).encode())
        | st.binary(max_size=12),
        max_size=4,
    )
)
@hypothesis.example([DEEP])
@hypothesis.example([b'{"text": ' + LONG + b"}"])
@hypothesis.example([b'{"text": "\\ud800"}'])
def test_json_lines_any_lines(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(b"\n".join(lines))
    with naming(DataError, path.name):
        texts = list(documents(DataConfig(corpus=str(path))))
        assert all(isinstance(text, str) for text in texts)


@few
@hypothesis.given(st.sampled_from(["tokenizer.json", "tokenizer.model"]), edits())
def test_tokenizer_edited_files(prepared, tmp_path_factory, name, edit):  # noqa: F811
    folder = tmp_path_factory.getbasetemp() / "fuzzed_tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared.tokenizer, folder)
    [path] = [p for p in folder.iterdir() if p.suffix == name[-len(p.suffix) :]]
    before = path.read_bytes()
    path.write_bytes(edit(before))
    with naming(DataError, folder.name):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.decode(tokenizer.encode("in the")) is not None


@few
@hypothesis.given(paths, anything)
def test_tokenizer_edited_configs(prepared, tmp_path_factory, path, value):  # noqa: F811
    folder = tmp_path_factory.getbasetemp() / "fuzzed_tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared.tokenizer, folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(replaced(json.loads(file.read_text()), path, value)))
    with naming(DataError, folder.name):
        load_tokenizer(folder)


@few
@hypothesis.given(paths, anything | st.just("../../elsewhere") | st.just("/etc/passwd"))
def test_data_info_edited(prepared, tmp_path_factory, path, value):  # noqa: F811
    """Files that it names outside of the folder are not opened."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed_data"
    if not folder.exists():
        shutil.copytree(prepared.data, folder)
    info = json.loads((prepared.data / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(replaced(info, path, value)))
    with naming(DataError, folder.name):
        split = open_split(folder, "train")
        assert len(split) == prepared.info.num_train


def test_data_info_a_shard_outside_of_the_folder(prepared, tmp_path):  # noqa: F811
    shutil.copytree(prepared.data, tmp_path / "data")
    info = json.loads((prepared.data / "info.json").read_text())
    info["shards"][0]["path"] = "../" + prepared.data.name + "/" + info["shards"][0]["path"]
    (tmp_path / "data" / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"info\.json is damaged"):
        open_split(tmp_path / "data", "train")


@pytest.fixture(scope="module")
def valid_checkpoint_facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_params(folder / "final", state_at(1).params, {"kind": "denoiser"})
    return folder / "final"


@few
@hypothesis.given(paths, anything)
def test_checkpoint_facts_edited_and_sealed_again(valid_checkpoint_facts, path, value):
    """As somebody who means harm would do it: the seal is right."""
    [file] = (valid_checkpoint_facts / "meta").glob("*.json")
    before = file.read_bytes()
    content = json.loads(before)
    del content["sha256"]
    edited = replaced(content, path, value)
    if isinstance(edited, dict):
        edited = edited | {"sha256": canonical_sha256(edited)}
    file.write_text(json.dumps(edited))
    with naming(CheckpointError, valid_checkpoint_facts):
        load_params(valid_checkpoint_facts)
    file.write_bytes(before)


@few
@hypothesis.given(edits())
def test_checkpoint_facts_edited(valid_checkpoint_facts, edit):
    [file] = (valid_checkpoint_facts / "meta").glob("*.json")
    before = file.read_bytes()
    file.write_bytes(edit(before))
    with naming(CheckpointError, valid_checkpoint_facts):
        load_params(valid_checkpoint_facts)
    file.write_bytes(before)


@few
@hypothesis.given(st.binary(max_size=16) | anything.map(lambda v: json.dumps(v).encode()))
@hypothesis.example(DEEP)
@hypothesis.example(b'{"config": ' + LONG + b"}")
def test_a_config_file_of_any_content(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzzed_run"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="fuzzed_run"):
        claim_workdir(folder, smoke())


SCRIPT = "<script>alert('x')</script>"


RESULTS = {
    "teacher": {"steps": {"8": {"gen_ppl": 2.0, "entropy": 1.0, "nfe": 8}}, "val_ppl": 3.0},
    "rounds": [
        {
            "round": 1,
            "dt": 0.5,
            "steps": {"8": {"gen_ppl": 2.0, "entropy": 1.0, "nfe": 8}},
            "divergence": SCRIPT,
        }
    ],
    "data": {"entropy": 1.0},
    "timing": {SCRIPT: 3.0},
}
SAMPLES = {
    "steps": [8],
    "length": 4,
    "texts": {"teacher": {"8": [SCRIPT]}, "student": {"8": [SCRIPT]}, "data": [SCRIPT]},
}


def written(folder, results, samples):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": {}, "config_file": SCRIPT}))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.json").write_text(json.dumps(samples))
    return write_report(folder).read_text()


def test_report_texts_are_never_markup(tmp_path):
    page = written(tmp_path / "run", RESULTS, SAMPLES)
    assert SCRIPT not in page
    assert "&lt;script&gt;alert" in page


@few
@hypothesis.given(paths, anything | st.just(SCRIPT))
def test_report_edited_results(tmp_path_factory, path, value):
    folder = tmp_path_factory.getbasetemp() / "fuzzed_report"
    with naming(DataError, folder.name):
        page = written(folder, replaced(RESULTS, path, value), SAMPLES)
        assert SCRIPT not in page
