"""What stages have delivered, and whether the results belong to it. Oracles: its digests and the messages."""

import contextlib
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

from experiments.stages import context
from experiments.stages.evaluation import is_evaluated
from experiments.stages.runner import STAGES, open_run, run_stages
from experiments.stages.training import check_found_elsewhere
from experiments.stages.workdir import final
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import stored_digest
from sdtt_jax.errors import CheckpointError, ConfigError, MismatchError, UserError
from sdtt_jax.evaluation.record import FOLDER, FORMAT
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.load import load
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.parallel.placement import unbox
from tests.experiments.small import small


def filled(network, value):
    shapes = unbox(jax.eval_shape(network.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """A run with a teacher and both rounds, and results that say which parameters they belong to."""
    folder = tmp_path_factory.mktemp("delivered")
    with open_run(small(folder), folder / "run") as run:
        root, workdir = run.workdir.root, run.workdir
        run.deliver(workdir.teacher, run.denoiser, filled(run.denoiser, 0), stage="teacher")
        for number in (1, 2):
            facts = {"stage": "distill", "round": number}
            run.deliver(workdir.round(number), run.denoiser, filled(run.denoiser, number), **facts)
    folders = ("teacher", "rounds/01", "rounds/02")
    digests = {name: stored_digest(root / name / "final") for name in folders}
    results = {"rounds": [{"round": 1}, {"round": 2}], "delivered": digests}
    workdir.results.write_text(json.dumps(results))
    workdir.samples.write_text(json.dumps({"delivered": digests}))
    (root / FOLDER).mkdir()
    for name in ("teacher", "round_01", "round_02"):
        content = {"format": FORMAT, "model": {"path": name, "digest": "0"}, "items": {}}
        (root / FOLDER / f"{name}.json").write_text(json.dumps(content))
    return run


@pytest.fixture
def run(delivered, tmp_path):
    """A copy of that run, to be changed."""
    folder = delivered.workdir.root.parent
    shutil.copytree(folder / "run", tmp_path / "run")
    with open_run(small(folder), tmp_path / "run") as opened:
        yield opened


def test_results_of_what_is_delivered_are_kept(run):
    assert is_evaluated(run)


def test_results_of_other_parameters_are_not_taken_for_the_runs(run):
    for name in ("teacher", "rounds/02"):
        results = json.loads(run.workdir.results.read_text())
        results["delivered"][name] = "0" * 64
        run.workdir.results.write_text(json.dumps(results))
        assert not is_evaluated(run)
    del results["delivered"]
    run.workdir.results.write_text(json.dumps(results))
    run.workdir.samples.write_text("{}")
    assert is_evaluated(run), "an earlier version wrote no digests"


@pytest.mark.parametrize("name", ["teacher", "round_02"])
def test_a_record_that_was_removed_is_made_again(run, name):
    """The report stayed without its rows, though their batches were there. Oracle: the file."""
    (run.workdir.root / FOLDER / f"{name}.json").unlink()
    assert not is_evaluated(run)
    results = json.loads(run.workdir.results.read_text())
    run.workdir.results.write_text(json.dumps({"rounds": results["rounds"]}))
    assert is_evaluated(run), "an earlier version kept no records"


def test_results_that_took_padding_or_other_texts_for_text_are_computed_again(run, monkeypatch):
    """Earlier versions did not say how sequences of one text or of several were judged."""
    results = json.loads(run.workdir.results.read_text())
    ways = {"documents": {"judged": "each text alone"}, "prompted": {"ends": "cut"}}
    for kind, said in (ways | {"padded": {"ends": "cut"}}).items():
        monkeypatch.setitem(vars(run), "sequences", Sequences(kind, 1, 2))
        run.workdir.results.write_text(json.dumps(results))
        assert not is_evaluated(run)
        run.workdir.results.write_text(json.dumps(results | said))
        assert is_evaluated(run)


def test_samples_of_other_parameters_are_written_again(run):
    samples = json.loads(run.workdir.samples.read_text())
    samples["delivered"]["teacher"] = "0" * 64
    run.workdir.samples.write_text(json.dumps(samples))
    assert not is_evaluated(run)


@pytest.mark.parametrize(
    "content",
    ['{"rounds": 3}', '{"rounds": [{}]}', '{"rounds": [1]}', '{"others": null}'],
)
def test_results_of_another_form_are_damaged(run, content):
    run.workdir.results.write_text(content)
    with pytest.raises(UserError, match=r"results\.json is damaged .*; remove it and run again\."):
        is_evaluated(run)


def test_a_page_that_shows_something_else_is_written_again(run):
    """Its time said that it was finished: that of a copy, or of a clock that was ahead. Oracle: the files."""
    workdir, [report] = run.workdir, [stage for stage in STAGES if stage.name == "report"]
    workdir.timing.write_text("{}")

    def write():
        report.run(run)
        os.utime(workdir.report, (2**32, 2**32))

    assert not report.is_finished(run)
    write()
    assert report.is_finished(run)
    metrics = {"stage": "teacher", "round": 0, "step": 1, "loss": 2.0}
    results = json.loads(workdir.results.read_text())
    evaluation = {"format": FORMAT, "model": {"path": "x", "digest": "0"}}
    item = {"inputs": {}, "result": {"kind": "diffusion", "num_steps": 4, "gen_ppl": 2.0}}
    for path, content in (
        (workdir.results, results | {"teacher": {"steps": {"4": {"gen_ppl": 2.0}}}}),
        (workdir.samples, {"texts": {"data": ["a text"]}, "length": 16}),
        (workdir.metrics, metrics),
        (
            workdir.root / FOLDER / "x.json",
            evaluation | {"items": {"generation/unconditional/steps_0004": item}},
        ),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content) + "\n")
        assert not report.is_finished(run), path
        write()
        assert report.is_finished(run), path


def test_what_another_stage_delivered_is_refused(run):
    first, second = (final(run.workdir.round(number)) for number in (1, 2))
    run.delivered(run.workdir.round(2), run.denoiser, "evaluate")
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert not is_evaluated(run)
    with pytest.raises(
        CheckpointError, match=r"02/final was delivered by distill, round 1, not by its own stage"
    ):
        run.delivered(run.workdir.round(2), run.denoiser, "evaluate")
    shutil.rmtree(final(run.workdir.teacher))
    shutil.copytree(first, final(run.workdir.teacher))
    with pytest.raises(
        CheckpointError,
        match=r"teacher/final was delivered by distill, round 1, not by its own stage",
    ):
        run.delivered(run.workdir.teacher, run.denoiser, "distill")


def test_a_run_that_was_moved_delivers_nothing_to_its_old_place(run, tmp_path):
    (tmp_path / "run").rename(tmp_path / "moved")
    for write in (
        lambda: run.info,
        lambda: run.deliver(run.workdir.teacher, None, {}),
        lambda: run.delivered(run.workdir.teacher, None, "evaluate"),
        lambda: run_stages(run, ("data",)),
    ):
        with pytest.raises(CheckpointError, match=r"run was moved or removed .*as --workdir"):
            write()
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_judge_is_refused_before_a_teacher_is_trained(
    delivered, tmp_path, capsys
):
    """Another vocabulary used to show only when the teacher was finished. A judge of shorter texts judges;
    that the baseline then writes beyond them is said."""
    shorter = small(tmp_path)
    shorter.data.length = 8
    with open_run(shorter, tmp_path / "judged") as other:
        other.deliver(other.workdir.judge, other.judge, filled(other.judge, 0), stage="judge")
    cases = [
        (other.workdir.judge, "another vocabulary"),
        (delivered.workdir.teacher, "is a denoiser"),
        (other.workdir.judge, None),
    ]
    for number, (checkpoint, message) in enumerate(cases):
        config = small(tmp_path)
        config.judge.checkpoint = str(checkpoint)
        if message == "another vocabulary":
            (tmp_path / "corpus.txt").write_text("0123456789 abcdefghij\n" * 400)
        with open_run(config, tmp_path / str(number)) as run:
            if message is None:
                run_stages(run, ("data", "judge"))
                assert (
                    "its context is 8 tokens: it scores texts of 16 in" in capsys.readouterr().out
                )
                continue
            with pytest.raises(ConfigError, match=message):
                run_stages(run, ("data", "teacher"))
            if message == "is a denoiser":
                with pytest.raises(ConfigError, match=message):
                    check_found_elsewhere(run, ("judge",))
        assert not run.workdir.teacher.exists()
    # Once it is delivered, the model that it was taken from may be gone.
    other.workdir.root.rename(tmp_path / "gone")
    with open_run(config, run.workdir.root) as run:
        run_stages(run, ("data", "judge"))
        assert run.judge == other.judge
        params = run.delivered(run.workdir.judge, run.judge, "evaluate")
        assert params_digest(params) == params_digest(filled(other.judge, 0))
        shutil.rmtree(final(run.workdir.judge))
        shutil.copytree(final(delivered.workdir.teacher), final(run.workdir.judge))
    with (
        open_run(config, run.workdir.root) as run,
        pytest.raises(
            CheckpointError, match="judge/final is a checkpoint of another model: denoiser"
        ),
    ):
        _ = run.judge


def test_a_teacher_of_another_text_is_distilled_with_its_own_vocabulary(delivered, tmp_path):
    """The error asked for the vocabulary's size, which no field sets. Oracle: what it says to give."""
    config = small(tmp_path)
    (tmp_path / "corpus.txt").write_text("a cab a bed a bee\n" * 400)
    config.teacher.checkpoint = str(delivered.workdir.teacher)
    with (
        open_run(config, tmp_path / "learnt") as run,
        pytest.raises(ConfigError, match=r"another vocabulary .*=file, and sentencepiece"),
    ):
        run_stages(run, ("data", "teacher"))
    file = delivered.workdir.root / "tokenizer" / "sentencepiece.model"
    config.tokenizer.update({"kind": "file", "file": str(file)})
    with open_run(config, tmp_path / "given") as run:
        run_stages(run, ("data", "teacher"))
        assert run.tokenizer.digest == delivered.tokenizer.digest


@pytest.mark.parametrize("form", [None, export_reference, export_orbax])
@pytest.mark.parametrize(
    ("stage", "name", "fields", "said"),
    [
        ("teacher", "teacher", {"normalize": "none"}, "data.normalize: 'text8' -> 'none'"),
        ("teacher", "teacher", {"sequences": "padded"}, "data.sequences: 'packed' -> 'padded'"),
        ("teacher", "rounds/02", {"wrap": True}, "data.wrap: False -> True"),
        ("judge", "judge", {"sequences": "padded"}, "data.sequences: 'packed' -> 'padded'"),
        ("judge", "skeleton", {}, " models only one token in 4"),
        ("judge", "judge", {}, None),
        ("teacher", "teacher", {}, None),
    ],
)
def test_a_model_of_texts_of_another_kind_is_refused_before_data_are_prepared(
    run, tmp_path, stage, name, fields, said, form
):
    """Its copy was ever after taken for a model of the run's own texts. Oracle: how it was delivered.

    So was an export's, though it says the same."""
    if stage == "judge":
        every = {"every": 4} if name == "skeleton" else {}
        params = filled(run.judge, 0)
        run.deliver(run.workdir.stage(name), run.judge, params, stage=name, **every)
    config = small(tmp_path)
    config.data.update(fields)
    folder = run.workdir.root / name
    if form is not None:
        form(load(folder), folder := tmp_path / "exported")
    config[stage].checkpoint = str(folder)
    with open_run(config, tmp_path / "other") as other:
        refused = contextlib.nullcontext()
        if said:
            refused = pytest.raises(ConfigError, match=re.escape(said))
        with refused:
            check_found_elsewhere(other, (stage,))
        assert not other.workdir.local.data.exists()


@pytest.mark.parametrize(
    ("stage", "content", "said"),
    [
        ("teacher", {}, None),
        ("teacher", {"model_type": "mdlm", "length": 16}, "data.wrap: True -> False"),
        (
            "judge",
            {"sequences": "padded", "eos_token_id": 1},
            "data.sequences: 'padded' -> 'packed'",
        ),
    ],
)
def test_a_model_of_the_hub_is_of_the_runs_texts(run, tmp_path, hub_of, stage, content, said):
    """MDLM lost the BOS before its texts. Oracle: its config, or what an export says."""
    if stage == "judge":
        run.deliver(run.workdir.judge, run.judge, filled(run.judge, 0), stage="judge")
    hub = tmp_path / "hub"
    export_reference(load(run.workdir.root / stage), hub)
    if stage == "judge":
        content = json.loads((hub / "config.json").read_text()) | content
    if content:
        (hub / "config.json").write_text(json.dumps(content))
    hub_of(hub)
    config = small(tmp_path)
    config[stage].checkpoint = "owner/name"
    said = said or "has no tokenizer"  # what is asked next
    with (
        open_run(config, tmp_path / "other") as other,
        pytest.raises(UserError, match=re.escape(said)),
    ):
        run_stages(other, ("data", "teacher"))


def test_a_delivered_network_with_sizes_of_another_version_is_named(monkeypatch, tmp_path):
    facts = {"kind": "causal", "model": {"width": 4}}
    monkeypatch.setattr(context, "load_facts", lambda _: facts)
    with pytest.raises(MismatchError, match=r"another model: causal .*width.*, not causal of"):
        context.stored_network(tmp_path, "causal")


def test_data_that_are_mixed_in_are_needed_to_train_and_no_longer(delivered, tmp_path):
    config = small(tmp_path)
    mixed = shutil.copytree(delivered.workdir.data, tmp_path / "mixed")
    config.data.mixture = (f"{mixed}=0.5",)
    with open_run(config, tmp_path / "run") as run:
        run.deliver(run.workdir.teacher, run.denoiser, filled(run.denoiser, 0), stage="teacher")
    shutil.rmtree(mixed)
    with open_run(config, tmp_path / "run") as run:
        check_found_elsewhere(run, ("data", "teacher", "evaluate", "report"))
        run.delivered(run.workdir.teacher, run.denoiser, "evaluate")
        with pytest.raises(ConfigError, match=r"config\.data\.mixture: .*mixed holds no prepared"):
            check_found_elsewhere(run, ("distill",))
