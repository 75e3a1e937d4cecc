"""A run that an earlier version made (tests/golden/old_run). Oracles: its own numbers and files."""

import json
import shutil
import tarfile

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.stages.runner import STAGE_NAMES, open_run, run_stages
from sdtt_jax.checkpoints.store import load_params

DENOISERS = {
    "teacher": "teacher/final",
    "round_01": "rounds/01/final",
    "round_02": "rounds/02/final",
}


@pytest.fixture(scope="module")
def unpacked(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(golden / "old_run" / "old_run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "old_run"


@pytest.fixture(scope="module")
def expected(golden):
    return dict(np.load(golden / "old_run" / "expected.npz"))


@pytest.fixture
def run_folder(unpacked, tmp_path, monkeypatch):
    """A copy whose corpus is where the config says."""
    root = shutil.copytree(unpacked, tmp_path / "run")
    monkeypatch.chdir(root)
    return root


def _resume(root, stages=STAGE_NAMES):
    mapping = json.loads((root / "config.json").read_text())["config"]
    with open_run(mapping, root) as run:
        run_stages(run, stages)


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", DENOISERS)
def test_its_denoisers_load_and_say_the_same(unpacked, expected, name):
    model = sdtt_jax.load(str(unpacked / DENOISERS[name]))
    _close(model.logits(expected["x_t"]), expected[f"{name}_logits"])
    nelbo = model.score(expected["tokens"], jax.random.key(0), 2)
    _close(nelbo, expected[f"{name}_nelbo"])


def test_its_last_round_samples(unpacked):
    model = sdtt_jax.load(str(unpacked / DENOISERS["round_02"]))
    texts = np.asarray(model.sample(jax.random.key(0), 2, 4))
    assert texts.shape == (2, 16)
    assert (texts < model.mask_id).all()
    assert len(model.tokenizer.decode(texts[0])) > 0


def test_its_judge_loads_and_says_the_same(unpacked, expected):
    judge = sdtt_jax.load(str(unpacked / "judge/final"))
    _close(judge.logits(expected["tokens"]), expected["judge_logits"])
    _close(judge.score(expected["tokens"]), expected["judge_nll"])


def test_a_finished_run_stays_as_it_is(run_folder, capsys):
    """But for its page, which this version draws in another way, and the times that the page shows."""

    def content():
        files = [path for path in run_folder.rglob("*") if path.is_file()]
        changing = {"config.json", "timing.json", "report.html", "results.json", ".lock"}
        results = json.loads((run_folder / "results.json").read_text()) | {"timing": None}
        return results, {path: path.read_bytes() for path in files if path.name not in changing}

    before = content()
    for page in ("one page", "finished before"):
        _resume(run_folder)
        assert content() == before
        stages = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
        finished = [f"{stage}: finished before" for stage in STAGE_NAMES[1:-1]]
        assert stages[1:] == [*finished, f"report: {page}"]


def test_a_round_that_was_cut_off_goes_on(run_folder):
    final = run_folder / "rounds/02/final"
    before, _ = load_params(final)
    shutil.rmtree(final)
    (run_folder / "metrics.jsonl").unlink()
    _resume(run_folder, ["distill"])
    after, _ = load_params(final)
    jax.tree.map(_close, after, before)
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [(line["round"], line["step"]) for line in metrics] == [(2, 4)], "it went on from step 2"
