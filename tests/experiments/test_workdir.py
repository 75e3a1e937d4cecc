"""Which run a directory belongs to. Oracle: the messages, and that nothing is overwritten."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import time

import pytest

from experiments.configs.english import english
from experiments.configs.smoke import smoke
from experiments.settings import RunConfig
from experiments.stages import workdir as workdirs
from experiments.stages.runner import open_run
from experiments.stages.workdir import (
    Workdir,
    claim_workdir,
    claimed_workdir,
    final,
    lock,
    read_json,
    timed,
    write_json,
)
from sdtt_jax.checkpoints.place import Place
from sdtt_jax.config import changed, from_mapping, to_mapping
from sdtt_jax.errors import CheckpointError, ConfigError, DataError, UserError
from tests.parallel.threads import in_threads

CONFIG = smoke()


def test_an_empty_directory_becomes_the_runs(tmp_path):
    workdir = claim_workdir(tmp_path / "run", CONFIG)
    assert json.loads(workdir.config.read_text())["config"]["data"]["length"] == CONFIG.data.length
    assert claim_workdir(tmp_path / "run", CONFIG).root == workdir.root


def test_processes_with_other_configs_are_no_run(monkeypatch, tmp_path):
    """Threads stand in for them. Oracles: the message, and that nothing is made."""

    def opening(config):
        with open_run(to_mapping(config), tmp_path / "run"):
            pass

    configs = CONFIG, changed(CONFIG, seed=CONFIG.seed + 7)
    found = in_threads(monkeypatch, *(lambda c=config: opening(c) for config in configs))
    for error in found:
        assert isinstance(error, ConfigError)
        what = r"config of process 1 and of process 0 differ \(config\.seed: 0 -> 7\); give all processes"
        assert re.search(what, str(error)), error
    assert not (tmp_path / "run").exists()


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        claim_workdir(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_does_not_begin_where_no_checkpoint_could_be_read_again(tmp_path):
    """One that was copied there may be read, evaluated and reported."""
    with pytest.raises(ConfigError, match=r"lr\[1\] has \[ in"), lock(tmp_path / "lr[1]"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty[1]").mkdir()
    with pytest.raises(ConfigError, match=r"empty\[1\] has \[ in its path"):
        claim_workdir(tmp_path / "empty[1]", CONFIG)
    assert list((tmp_path / "empty[1]").iterdir()) == []
    claim_workdir(tmp_path / "run", CONFIG).root.rename(tmp_path / "lr[1]")
    claim_workdir(tmp_path / "lr[1]", CONFIG)


def test_a_link_that_leads_nowhere_is_no_directory(tmp_path):
    """The answer was "File exists"."""
    (tmp_path / "run").symlink_to("gone")
    with (
        pytest.raises(UserError, match="run is a link to gone, which leads nowhere"),
        lock(tmp_path / "run"),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EAGAIN, r"in use by another run \(unknown process\)"),
        (errno.EACCES, "in use by another run"),
        (errno.EIO, "cannot be locked: .*; give another --workdir"),
        (errno.ENOSYS, None),
        (errno.ENOLCK, None),
        (errno.EOPNOTSUPP, None),
    ],
)
def test_only_a_lock_that_is_held_means_another_run(tmp_path, monkeypatch, caplog, number, said):
    """Lustre and NFS may have no locks at all; the pods' guide takes such folders. Oracle: the message."""

    def flock(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdirs.fcntl, "flock", flock)
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext(), lock(tmp_path):
        assert not said
    assert ("a file system without locks" in caplog.text) == (said is None)


def test_a_distiller_may_be_added_with_its_settings_and_none_that_has_begun_be_taken_away(tmp_path):
    workdir = claim_workdir(tmp_path / "run", CONFIG)
    final(workdir.round(1)).mkdir(parents=True)
    idlm = {"num_calls": CONFIG.idlm.num_calls + 1}
    claim_workdir(tmp_path / "run", changed(CONFIG, idlm=idlm))
    more = changed(CONFIG, idlm=idlm, distillers=(*CONFIG.distillers, "idlm"))
    claim_workdir(tmp_path / "run", more)
    final(workdir.round(1, "idlm")).mkdir(parents=True)
    with pytest.raises(ConfigError, match="idlm"):
        claim_workdir(tmp_path / "run", changed(more, idlm=dataclasses.asdict(CONFIG.idlm)))
    with pytest.raises(ConfigError, match="distillers"):
        claim_workdir(tmp_path / "run", changed(more, distillers=CONFIG.distillers))
    with pytest.raises(ConfigError, match="distillers"):
        claim_workdir(tmp_path / "run", changed(more, distillers=("idlm", *CONFIG.distillers)))


def test_a_finished_run_to_which_a_distiller_was_added_in_vain_takes_its_first_command(tmp_path):
    """The distiller's settings were wrong, so nothing came of it: both its settings and it may go."""
    workdir = claim_workdir(tmp_path, CONFIG)
    final(workdir.round(1)).mkdir(parents=True)
    wrong = changed(CONFIG, distillers=(*CONFIG.distillers, "alpha"), alpha={"num_calls": 7})
    claim_workdir(tmp_path, wrong)
    claim_workdir(tmp_path, changed(wrong, alpha={"num_calls": 8}))
    claim_workdir(tmp_path, CONFIG)
    assert stored(workdir) == to_mapping(CONFIG)


HINDSIGHT = {"coupled": {"hindsight": not CONFIG.coupled.hindsight}}
STEPS = {"train": {"num_steps": 77}}


@pytest.mark.parametrize(
    ("fields", "begun", "line"),
    [
        ({"distill": {"num_rounds": 1}}, "rounds/01", "distill.num_rounds: 2 -> 1"),
        ({"distill": {"num_rounds": 1}}, "rounds/02", "distill.num_rounds: 2 -> 1"),
        ({"coupled": {"pool": "x"}}, "coupled/01", "coupled.pool: '' -> 'x'"),
        (HINDSIGHT, "coupled/02", "coupled.hindsight: "),
        (HINDSIGHT, "coupled_idlm/01", "coupled.hindsight: "),
        ({"judge": {"checkpoint": "x"}}, "judge", "judge.checkpoint: '' -> 'x'"),
        ({"judge": {"skeleton": 4}}, "skeleton", "judge.skeleton: 0 -> 4"),
        ({"teacher": {"checkpoint": "x"}}, "teacher", "teacher.checkpoint: '' -> 'x'"),
        ({"teacher": {"checkpoint": "x"}}, "base", "teacher.checkpoint: '' -> 'x'"),
        ({"teacher": STEPS}, "idlm/01", "teacher.train.num_steps: "),
        ({"model": {"num_layers": 9}}, "teacher", "model.num_layers: 2 -> 9"),
        ({"model": {"num_layers": 9}}, "rounds/02", "model.num_layers: 2 -> 9"),
        ({"schedule": {"kind": "cosine"}}, "teacher", "schedule.kind: 'log-linear' -> 'cosine'"),
    ],
)
def test_settings_may_change_until_something_has_come_of_them(tmp_path, fields, begun, line):
    """A wrong one may show when earlier stages have trained; the run used to refuse the correction as well.
    A stage whose folder was removed could be made again otherwise, beside what was made from the first one.

    Oracle: the directories, made by hand (an empty one is of a training that has saved nothing), and the
    config that is stored.
    """
    first = changed(CONFIG, distillers=("sdtt", "coupled", "coupled_idlm", "idlm"))
    second = changed(first, **fields)
    workdir = claim_workdir(tmp_path, first)
    final(workdir.data).mkdir(parents=True)
    if begun not in ("teacher", "base") and not {"teacher", "model", "schedule"} & fields.keys():
        final(workdir.teacher).mkdir(parents=True)
    (tmp_path / begun / "pool").mkdir(parents=True)
    claim_workdir(tmp_path, second)
    assert stored(workdir) == to_mapping(second)
    claim_workdir(tmp_path, first)
    (tmp_path / begun / "20").mkdir()
    with pytest.raises(ConfigError, match="holds a run of another config") as refused:
        claim_workdir(tmp_path, second)
    assert f":\n  {line}" in str(refused.value)
    assert str(refused.value).count("\n") == 1
    assert stored(workdir) == to_mapping(first)


@pytest.mark.parametrize(
    ("fields", "done"),
    [
        ({"teacher": STEPS}, "teacher/final"),
        ({"model": {"remat": "full"}}, "teacher/final"),
        ({"evaluation": {"batch_size": 1}}, "results.json"),
    ],
)
def test_what_too_little_memory_asks_for_may_change(tmp_path, fields, done):
    """ "Take a smaller batch" was refused once the adapters' base, or a teacher to evaluate, was there."""
    second = changed(CONFIG, **fields)
    workdir = claim_workdir(tmp_path, CONFIG)
    final(workdir.base).mkdir(parents=True)
    if "evaluation" in fields:
        final(workdir.teacher).mkdir(parents=True)
    claim_workdir(tmp_path, second)
    assert stored(workdir) == to_mapping(second)
    (tmp_path / done).mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run of another config"):
        claim_workdir(tmp_path, CONFIG)


def test_what_does_not_decide_the_tokens_of_a_published_teacher_may_change_until_it_has_begun(
    tmp_path,
):
    """Everything but steps and schedule was refused. Oracle: the docs, and what the tokens depend on."""
    first = english()
    claim_workdir(tmp_path, first)
    second = changed(
        first, model={"remat": "full"}, teacher={"attention_annealing": 7, "lora": {"rank": 4}},
        distill={"lora": {"rank": 4}},
    )  # fmt: skip
    assert stored(claim_workdir(tmp_path, second)) == to_mapping(second)
    with pytest.raises(ConfigError, match=r"teacher\.init_from: "):
        claim_workdir(tmp_path, changed(second, teacher={"init_from": "another"}))
    final(Workdir(tmp_path).base).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"teacher\.lora\.rank: 4 -> 16$"):
        claim_workdir(tmp_path, first)


def test_where_a_coupled_student_is_measured_may_change_until_it_is_measured(tmp_path):
    """A run with no calls trained, failed as it was measured, and could not be given calls."""
    workdir = claim_workdir(tmp_path, CONFIG)
    (final(workdir.round(1, "coupled"))).mkdir(parents=True)
    none = to_mapping(CONFIG)
    none["coupled"]["calls"] = []  # which no config may have any more
    write_json(workdir.config, {"config": none})
    second = changed(CONFIG, coupled={"calls": (1, 2)})
    claim_workdir(tmp_path, second)
    assert stored(workdir) == to_mapping(second)
    with pytest.raises(ConfigError, match=r"coupled\.train\.num_steps: "):
        claim_workdir(tmp_path, changed(second, coupled=STEPS))
    write_json(workdir.results, {})
    with pytest.raises(ConfigError, match=r"coupled\.calls: "):
        claim_workdir(tmp_path, CONFIG)


def test_a_run_with_a_setting_that_changed_nothing_goes_on_without_it(tmp_path):
    """No config may have it any more, so the run's own command, with it or without, would be refused."""
    workdir = claim_workdir(tmp_path, CONFIG)
    final(workdir.round(1)).mkdir(parents=True)
    old = to_mapping(CONFIG)
    assert old["distill"]["train"]["optimizer"]["name"] == "adam"
    old["distill"]["train"]["optimizer"]["momentum"] = 0.5
    write_json(workdir.config, {"config": old})
    claim_workdir(tmp_path, CONFIG)
    assert stored(workdir) == to_mapping(CONFIG)


def test_a_run_of_a_version_with_more_fields_asks_for_that_version(tmp_path):
    """It asked to set them back, which nobody can."""
    workdir = claim_workdir(tmp_path, CONFIG)
    content = json.loads(workdir.config.read_text())
    content["config"]["data"]["novelty"] = 3
    del content["config"]["data"]["deduplicate"]  # newer than that version
    workdir.config.write_text(json.dumps(content))
    said = r"take the version of sdtt_jax that has them\):\n  data\.novelty: 3 -> '\(absent\)'$"
    with pytest.raises(ConfigError, match=said):
        claim_workdir(tmp_path, CONFIG)


def test_another_limit_of_bad_input_goes_on(tmp_path):
    """Oracle: docs/guides/data.md, which says so."""
    workdir = claim_workdir(tmp_path, CONFIG)
    workdir.data.mkdir()
    more = changed(CONFIG, data={"skip_bad": 5})
    claim_workdir(tmp_path, more)
    assert stored(workdir) == to_mapping(more)


def stored(workdir):
    return to_mapping(from_mapping(RunConfig, read_json(workdir.config)["config"]))


@pytest.mark.parametrize("made", [False, True])
def test_a_run_that_fails_before_it_has_made_anything_leaves_the_directory_free(tmp_path, made):
    other = dataclasses.replace(CONFIG, seed=7)

    def failing():
        with claimed_workdir(tmp_path, CONFIG):
            (tmp_path / "timing.json").write_text("{}")
            (tmp_path / "data").mkdir() if made else None
            raise DataError("no field 'text'")

    with pytest.raises(DataError):
        failing()
    if made:
        with pytest.raises(ConfigError, match="seed: 0 -> 7"):
            claim_workdir(tmp_path, other)
    else:
        assert not list(tmp_path.iterdir())
        claim_workdir(tmp_path, other)


def test_a_run_that_was_moved_touches_nothing_in_its_old_place(tmp_path):
    """There another run may have begun, whose files a failing run used to take for its own."""
    root = tmp_path / "run"

    def moved(begin):
        with claimed_workdir(root, CONFIG), contextlib.closing(Place(root)) as place:
            root.rename(tmp_path / f"moved_{begin}")
            if begin:
                claim_workdir(root, CONFIG)
            with timed(Workdir(root), "teacher", place):
                pass

    for begin in (False, True):
        with pytest.raises(CheckpointError, match="run was moved or removed while the run was"):
            moved(begin)
        assert sorted(path.name for path in tmp_path.glob("run/*")) == ["config.json"] * begin
        assert (tmp_path / f"moved_{begin}" / "config.json").exists()


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        claim_workdir(tmp_path, CONFIG)


@pytest.mark.parametrize("content", ["", "null", '{"config": 3}', '{"config": {"distillers": 3}}'])
def test_a_damaged_config_is_not_to_be_removed(tmp_path, content):
    """Without it the folder holds no run, so removing it, the remedy for other files, would lose the run."""
    (tmp_path / "config.json").write_text(content)
    said = r"(is damaged|holds no JSON object).*; restore it from a copy, or give another"
    with pytest.raises(UserError, match=said):
        claim_workdir(tmp_path, CONFIG)


def test_a_file_of_the_wrong_form_is_damaged(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match=r"x\.json holds no JSON object; remove it"):
        read_json(tmp_path / "x.json")


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_times_of_several_calls_add_up(tmp_path):
    workdir = Workdir(tmp_path)
    write_json(workdir.timing, {"distill": 100.0, "data": 1.0})

    def stopped():
        with timed(workdir, "distill"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    seconds = read_json(workdir.timing)
    assert 100.0 <= seconds["distill"] < 110.0
    assert seconds["data"] == 1.0


def test_a_kill_loses_only_the_time_since_the_last_write(monkeypatch, tmp_path):
    """All that a killed call had spent was missing. Oracle: the file while the stage goes on, and a clock."""
    monkeypatch.setattr(workdirs, "TIMED_EVERY", 0.01, raising=False)
    workdir, began = Workdir(tmp_path), time.monotonic()
    write_json(workdir.timing, {"distill": 100.0})
    with timed(workdir, "distill"):
        while read_json(workdir.timing)["distill"] < 100.3:
            assert time.monotonic() - began < 20
            time.sleep(0.01)
    seconds = read_json(workdir.timing)["distill"] - 100.0
    assert seconds == pytest.approx(time.monotonic() - began, abs=1.0)


def test_a_time_that_is_no_number_is_damaged(tmp_path):
    workdir = Workdir(tmp_path)
    write_json(workdir.timing, {"distill": "long"})
    with (
        pytest.raises(UserError, match=r"timing\.json is damaged .*; remove it and run again"),
        timed(workdir, "distill"),
    ):
        pass


def test_what_stopped_a_stage_is_said_even_if_its_time_cannot_be_written(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.timing.mkdir()

    def failing():
        with timed(workdir, "distill"):
            raise CheckpointError("the last state could not be saved")

    with pytest.raises(CheckpointError, match="could not be saved"):
        failing()


def test_where_things_are(tmp_path):
    workdir = Workdir(tmp_path)
    assert final(workdir.round(3)) == tmp_path / "rounds" / "03" / "final"
    assert final(workdir.teacher) == tmp_path / "teacher" / "final"
