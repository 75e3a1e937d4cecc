"""The record of an evaluation. Oracles: its files, and how often something is computed."""

import json

import jax
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import EARLIER, FORMAT, Record, digest_of

MODEL = {"path": "a model", "digest": "0" * 64}
OTHER = {"path": "another", "digest": "1" * 64}


class Counted:
    """Computes something and counts how often."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def test_an_item_is_computed_once_for_its_inputs(tmp_path):
    compute = Counted({"share": 0.5, "pair": (1, 2), "none": float("nan")})
    for _ in range(2):
        result = Record(tmp_path / "x.json", MODEL).item("suite/a", {"steps": (4, 8)}, compute)
        assert result == {"share": 0.5, "pair": [1, 2], "none": None}
    assert compute.times == 1
    told = []
    Record(tmp_path / "x.json", MODEL, told.append).item("suite/a", {"steps": (4,)}, compute)
    assert compute.times == 2
    assert told == [
        "suite/a: replaces the result in x.json (steps: [4, 8] -> [4]); to keep both, use another file"
    ]
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["format"] == FORMAT
    assert content["model"] == MODEL
    assert content["items"]["suite/a"]["inputs"] == {"steps": [4]}


def test_products_of_another_precision_are_other_results(tmp_path):
    compute, batch = Counted({"share": 0.5}), Counted({"tokens": np.zeros((2, 3))})
    for precision, times in (("bfloat16", 1), ("bfloat16", 1), ("highest", 2), (None, 3)):
        with jax.default_matmul_precision(precision):
            record = Record(tmp_path / "x.json", MODEL)
            record.item("suite/a", {"seed": 0}, compute)
            record.part("suite/a", {"seed": 0}, 0, batch)
        assert (compute.times, batch.times) == (times, times)


def test_a_run_that_was_moved_keeps_its_results(tmp_path):
    """The judge of a run lies in it, so its path changes; another judge has another digest."""
    compute = Counted({"perplexity": 2.0})
    for judge, times in ((MODEL, 1), (MODEL | {"path": "moved"}, 1), (OTHER, 2)):
        Record(tmp_path / "x.json", MODEL).item("suite/a", {"judge": judge}, compute)
        assert compute.times == times
    moved, told = {"judge": OTHER | {"path": "moved"}, "path": "b"}, []
    Record(tmp_path / "x.json", MODEL, told.append).item("suite/a", moved, compute)
    assert compute.times == 3
    assert "judge" not in told[0]  # its path is no reason


def test_parts_outlive_an_item_that_was_cut_off(tmp_path):
    compute = Counted({"tokens": np.arange(6).reshape(2, 3)})
    for _ in range(2):
        arrays = Record(tmp_path / "x.json", MODEL).part("suite/a", {"seed": 0}, 3, compute)
        np.testing.assert_array_equal(arrays["tokens"], compute.value["tokens"])
    assert compute.times == 1
    Record(tmp_path / "x.json", MODEL).part("suite/a", {"seed": 1}, 3, compute)
    assert compute.times == 2


def test_what_only_names_the_inputs_takes_the_latest_value(tmp_path):
    """Equal texts in another file: nothing is computed, and the file's name is that of the last call."""
    compute = Counted({"file": "a.jsonl", "gen_ppl": 2.0})
    for file in ("a.jsonl", "b.jsonl"):
        record = Record(tmp_path / "x.json", MODEL)
        named = {"file": file, "newer": "than the stored result"}
        assert record.item("judge/texts", {}, compute, named) == {"file": file, "gen_ppl": 2.0}
        assert Record(tmp_path / "x.json", MODEL).items["judge/texts"]["file"] == file
    assert compute.times == 1


def test_a_file_of_an_earlier_version_is_refused_or_replaced(tmp_path):
    """Oracle: its format. Parts that it left are not read: what determined them did not say everything."""
    path, compute = tmp_path / "x.json", Counted({"gen_ppl": 2.0})
    Record(path, MODEL).item("suite/a", {}, compute)
    path.write_text(path.read_text().replace(FORMAT, EARLIER))
    with pytest.raises(ConfigError, match="earlier version of sdtt_jax"):
        Record(path, MODEL)
    assert Record(path, MODEL, replace=True).items == {}
    assert json.loads(path.read_text())["format"] == FORMAT


def test_files_that_differ_in_their_endings_alone_keep_their_own_texts(tmp_path):
    models = {"res.student": MODEL, "res.teacher": OTHER, "res": MODEL, "res.json": OTHER}
    for name, model in models.items():
        Record(tmp_path / name, model).write_texts("suite/a", [{"text": name}])
    for name in models:
        lines = (tmp_path / f"{name}.parts" / "suite_a.jsonl").read_text()
        assert json.loads(lines) == {"text": name}


def test_of_some_batches_those_that_lack_are_computed_and_shown(tmp_path, capsys):
    computed = [Counted(np.full(2, number)) for number in range(3)]

    def batches():
        record = Record(tmp_path / "x.json", MODEL)
        return record.batches("suite/a", {}, computed, lambda x: {"tokens": x}, tokens=2)

    np.testing.assert_array_equal(batches()["tokens"], [0, 0, 1, 1, 2, 2])
    assert "suite/a: step 3/3" in capsys.readouterr().err
    next(tmp_path.rglob("00001.npz")).unlink()
    np.testing.assert_array_equal(batches()["tokens"], [0, 0, 1, 1, 2, 2])
    assert [batch.times for batch in computed] == [1, 2, 1]
    assert capsys.readouterr().err.startswith("suite/a: step 3/3")
    batches()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_part_is_computed_again(tmp_path, damage):
    compute = Counted({"tokens": np.arange(600).reshape(2, 300)})
    record = Record(tmp_path / "x.json", MODEL)
    record.part("suite/a", {}, "scores", compute)
    [path] = tmp_path.rglob("scores.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "cut": bytes(content[:-50]), "empty": b""}
    path.write_bytes(damaged[damage])
    record.part("suite/a", {}, "scores", compute)
    assert compute.times == 2
    arrays = record.part("suite/a", {}, "scores", compute)
    np.testing.assert_array_equal(arrays["tokens"], compute.value["tokens"])
    assert compute.times == 2


def test_a_part_that_was_copied_over_another_is_computed_again(tmp_path):
    computed = [Counted({"tokens": np.full((2, 3), number)}) for number in range(2)]
    record = Record(tmp_path / "x.json", MODEL)
    for seed, compute in enumerate(computed):
        record.part("suite/a", {"seed": seed}, 0, compute)
    first, second = (record._part("suite/a", {"seed": seed}, 0) for seed in range(2))
    second.write_bytes(first.read_bytes())
    arrays = record.part("suite/a", {"seed": 1}, 0, computed[1])
    assert set(arrays) == {"tokens"}
    np.testing.assert_array_equal(arrays["tokens"], 1)


def test_results_of_one_model_are_not_mixed_with_those_of_another(tmp_path):
    path = tmp_path / "x.json"
    Record(path, MODEL).item("suite/a", {}, dict)
    with pytest.raises(ConfigError, match=r"holds the evaluation of a model .* give another file"):
        Record(path, OTHER)
    assert Record(path, OTHER, replace=True).items == {}
    assert Record(path, OTHER).items == {}


def test_two_evaluations_of_a_model_fill_one_file(tmp_path):
    """They overlap, each with an item that the other has not. Oracle: one after the other."""
    together, path = tmp_path / "together.json", tmp_path / "x.json"
    Record(path, MODEL).item("suite/c", {"steps": 1}, lambda: {"of": "earlier"})
    first, second = Record(path, MODEL), Record(path, MODEL)
    first.item("suite/a", {}, lambda: {"of": "first"})
    second.item("suite/b", {}, lambda: {"of": "second"})
    second.item("suite/c", {"steps": 2}, lambda: {"of": "second"})
    first.item("suite/d", {}, lambda: {"of": "first"})
    whole = {"a": "first", "b": "second", "c": "second", "d": "first"}
    found = Record(path, MODEL).items
    assert found == {f"suite/{name}": {"of": of} for name, of in whole.items()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"], "the lock is gone"
    # Two models that began with an empty file: whoever ends last is told, and destroys nothing.
    first, other = Record(together, MODEL), Record(together, OTHER)
    first.item("suite/a", {}, dict)
    with pytest.raises(ConfigError, match=r"holds the evaluation of a model .* give another file"):
        other.item("suite/a", {}, dict)
    assert list(Record(together, MODEL).items) == ["suite/a"]


@pytest.mark.parametrize(
    ("content", "named"), [("{}", "not a file of results"), ("nonsense", "not JSON")]
)
def test_a_file_that_is_something_else_is_left_alone(tmp_path, content, named):
    path = tmp_path / "other.json"
    path.write_text(content)
    for replace in (False, True):
        with pytest.raises(ConfigError, match=named):
            Record(path, MODEL, replace=replace)
    assert path.read_text() == content
    with pytest.raises(ConfigError, match="is a folder"):
        Record(tmp_path, MODEL)


ITEM = {"inputs": {}, "result": {}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"items": None}, "it has no items"),
        ({"items": {"a": None}}, "a has no inputs"),
        ({"items": {"a": {"result": {}}}}, "a has no inputs"),
        ({"items": {"a": {"inputs": {}, "result": 3}}}, "a has no result"),
        ({"items": {"a": ITEM}, "model": None}, "does not name its model"),
        ({"items": {"a": ITEM}, "model": {"path": "x"}}, "does not name its model"),
    ],
)
def test_a_file_that_has_lost_a_part_is_damaged(tmp_path, fields, named):
    path = tmp_path / "x.json"
    content = json.dumps({"format": FORMAT, "model": MODEL, "items": {}} | fields)
    path.write_text(content)
    for replace in (False, True):
        with pytest.raises(ConfigError, match=rf"x\.json is damaged \(.*{named}\); remove it"):
            Record(path, MODEL, replace=replace)
    assert path.read_text() == content


def test_equal_arrays_have_equal_digests():
    one = np.arange(6, dtype=np.int32)
    assert digest_of([one]) == digest_of([one.copy()])
    assert digest_of([one]) != digest_of([one.astype(np.int64)])
    assert digest_of([one]) != digest_of([one.reshape(2, 3)])
