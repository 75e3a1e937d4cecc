"""The distillers of one round in a run. Oracles: the unbroken run, and what the teacher says."""

import contextlib
import dataclasses
import io
import json
import math
import shutil

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.distillers import ONE_ROUND
from experiments.settings import config_dict, run_config
from experiments.stages import evaluation
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import load_params
from sdtt_jax.errors import ConfigError, MismatchError
from sdtt_jax.formats import read_json
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.reporting.evaluations import read_evaluations
from sdtt_jax.reporting.record import read_run
from sdtt_jax.trees import flat_leaves
from tests.experiments.small import small
from tests.worlds import noisy_params

STAGES = ("data", "teacher", "distill")
SMALL = {
    "alpha": {"num_calls": 2},
    "mixture": {"num_calls": 4, "num_distill_calls": 2, "num_values": 2},
    "mmd": {"num_calls": 2, "num_groups": 2, "layer": 1},
    "idlm": {"num_calls": 2},
    # A warmer teacher that has learnt next to nothing would draw the student back to where it began.
    "coupled_idlm": {"full_share": 0.5, "teacher_temperature": 1.0},
}
NUM_TEXTS = 16
MEASURED = [name for name in ONE_ROUND if name != "coupled_idlm"]


def every_distiller(folder):
    config = run_config(small(folder))
    train = config.distill.train
    stages = {
        name: dataclasses.replace(getattr(config, name), train=train, **fields)
        for name, fields in SMALL.items()
    }
    stages["coupled"] = dataclasses.replace(
        config.coupled, train=train, num_calls=2, num_trajectories=16, calls=(1, 2)
    )
    stages["distillers"] = ("coupled", *ONE_ROUND)
    stages["data"] = dataclasses.replace(config.data, length=8)
    stages["evaluation"] = dataclasses.replace(
        config.evaluation, num_texts=NUM_TEXTS, batch_size=NUM_TEXTS, num_steps=(4,),
        validation_sequences=NUM_TEXTS,
    )  # fmt: skip
    return config_dict(dataclasses.replace(config, **stages))


@pytest.fixture(scope="module")
def unbroken(compiled_once, tmp_path_factory):  # noqa: ARG001
    """Teacher and judge have random parameters, since their training is of no matter here.

    They are so small that the teacher doubts everything, and its texts reach the entropy of real ones.
    """
    folder = tmp_path_factory.mktemp("one_round")
    with open_run(every_distiller(folder), folder / "run") as run:
        run_stages(run, STAGES[:1])
        for path, network in ((run.workdir.teacher, run.denoiser), (run.workdir.judge, run.judge)):
            run.deliver(path, network, noisy_params(network, 0, spread=0.05), stage=path.name)
        run_stages(run, STAGES)
    return folder / "run"


def digest(root, name):
    return params_digest(load_params(root / name / "01" / "final")[0])


def test_stopped_in_its_round_each_ends_in_the_same_bits(unbroken, tmp_path):
    """Killed between the checkpoints of steps 2 and 4, each goes on from step 2."""
    root = tmp_path / "run"
    shutil.copytree(unbroken, root)
    for name in ONE_ROUND:
        for lost in ("4", "final"):
            shutil.rmtree(root / name / "01" / lost)
    (root / "metrics.jsonl").unlink()
    with open_run(every_distiller(unbroken.parent), root) as run:
        run_stages(run, STAGES)
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    went_on = [(name, step) for name in ONE_ROUND for step in (3, 4)]
    assert [(line["stage"], line["step"]) for line in lines] == went_on
    for name in ONE_ROUND:
        assert digest(root, name) == digest(unbroken, name), name


@pytest.mark.parametrize("name", ONE_ROUND)
def test_each_moves_its_student_which_is_loaded_and_writes(unbroken, name):
    teacher = flat_leaves(load_params(unbroken / "teacher" / "final")[0])
    model = sdtt_jax.load(unbroken / name)
    assert (model.facts["stage"], model.facts["round"]) == (name, 1)
    assert SMALL[name].items() <= model.facts["settings"].items()
    student = flat_leaves(model.params)
    assert any(not np.array_equal(leaf, student[path]) for path, leaf in teacher.items())
    texts = model.sample(jax.random.key(0), NUM_TEXTS, 4)
    assert texts.shape == (NUM_TEXTS, 8)
    assert int(np.max(texts)) < model.denoiser.mask_id


@pytest.fixture(scope="module")
def said():
    """What the evaluation prints."""
    return io.StringIO()


@pytest.fixture(scope="module")
def measured(unbroken, said):
    with open_run(every_distiller(unbroken.parent), unbroken) as run:
        with contextlib.redirect_stdout(said):
            run_stages(run, ("judge", "evaluate"))
        assert evaluation.is_evaluated(run)
    return read_json(unbroken / "results.json")


def test_each_is_measured_beside_the_teacher(unbroken, measured):
    assert list(measured["others"]) == MEASURED
    for name, found in measured["others"].items():
        student, teacher = found["steps"]["4"], measured["teacher"]["steps"]["4"]
        ratio = math.log(student["gen_ppl"] / teacher["gen_ppl"])
        assert found["paired"]["4"]["log_ratio"] == pytest.approx(ratio, abs=1e-5)
        assert (found["val_ppl"] is None) == (name == "mixture")
        # The student finds its run, with whose judge and data it can be measured again.
        assert sdtt_jax.load(unbroken / name).run_folder == unbroken
    # The texts that are shown are those of the student that the report speaks of.
    assert read_run(unbroken).student.name == MEASURED[-1]
    assert read_run(unbroken).animation.title == f"student of {MEASURED[-1]}, 8 steps"
    assert {e.name for e in read_evaluations(unbroken)} >= {f"{name}_01" for name in MEASURED}


def test_both_noise_coupled_students_are_measured_at_few_calls(unbroken, measured, said):
    """Their teacher's texts are the same, and what is printed says what its numbers are."""
    first, last = measured["coupled"]["calls"], measured["coupled_idlm"]["calls"]
    assert list(first) == list(last) == ["1", "2"]
    for calls, found in last.items():
        assert found["teacher"] == first[calls]["teacher"]
        assert found["matched"] != first[calls]["matched"]
    assert [few.calls for few in read_run(unbroken).first_few_calls] == [1, 2]
    at = last["1"]["matched"]
    student = f"{at['gen_ppl']:.2f} (entropy {at['entropy']:.3f}) of the student of coupled_idlm,"
    assert f"  1 call: perplexity {student} " in said.getvalue()
    # The teacher is also measured at twice as many calls, to tell what the students' calls are worth.
    assert list(measured["coupled_idlm"]["teacher_calls"]) == ["4"]
    assert list(read_run(unbroken).teacher_few_calls) == [1, 2, 4]


def test_the_student_of_coupled_idlm_goes_on_from_that_of_coupled(unbroken):
    first, last = (
        load_params(unbroken / name / "01" / "final")[0] for name in ("coupled", "coupled_idlm")
    )
    teacher = load_params(unbroken / "teacher" / "final")[0]

    def distance(params, other):
        return sum(
            float(np.abs(np.asarray(a) - np.asarray(b)).sum())
            for a, b in zip(
                jax.tree.leaves(params["blocks"]), jax.tree.leaves(other["blocks"]), strict=True
            )
        )

    assert 0 < distance(last, first) < distance(last, teacher)


def test_a_mixture_carries_its_latent_and_the_references_format_refuses_it(unbroken, tmp_path):
    model = sdtt_jax.load(unbroken / "mixture")
    assert model.params["noise"]["values"].shape[0] == 2
    with pytest.raises(MismatchError, match="for which the reference's format has no"):
        export_reference(model, tmp_path / "reference")
    export_reference(sdtt_jax.load(unbroken / "alpha"), tmp_path / "alpha")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"distillers": ("mmd",), "mmd": {"layer": 99}}, "mmd.layer=99 does not exist"),
        (
            {
                "distillers": ("mixture",),
                "teacher": {"init_from": "smollm2"},
                "tokenizer": {"kind": "hub"},
            },
            "distillers=.*mixture.* need a teacher",
        ),
        ({"distillers": ("coupled_idlm", "coupled")}, "name that before it"),
        ({"mixture": {"num_values": 1}}, "num_values"),
        (
            {"coupled": {"noise": {"kind": "latent"}}},
            "noise.kind='latent' is one value for a whole text",
        ),
        ({"alpha": {"alpha": 1.5}}, "alpha"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        run_config(fields)
