"""The metrics file: a line per logged step, and no line twice."""

import json
import resource

import pytest

from sdtt_jax.training.metrics import MetricsWriter, read_metrics

FIRST = {"stage": "distill", "round": 1}
SECOND = {"stage": "distill", "round": 2}


def write(directory, tags, start, steps, loss=1.0):
    with MetricsWriter(directory, tags, start) as writer:
        for step in steps:
            writer.write(step, {"loss": loss})


def test_a_line_holds_stage_round_step_and_values(tmp_path):
    write(tmp_path, FIRST, 0, [1], loss=0.5)
    assert read_metrics(tmp_path / "metrics.jsonl") == [FIRST | {"step": 1, "loss": 0.5}]


def test_a_resume_drops_later_lines_of_the_same_round_only(tmp_path):
    write(tmp_path, FIRST, 0, [1, 2, 3])
    write(tmp_path, SECOND, 0, [1, 2, 3])
    write(tmp_path, SECOND, 2, [3, 4], loss=2.0)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["round"], r["step"]) for r in lines] == [
        *[(1, 1), (1, 2), (1, 3)],
        *[(2, 1), (2, 2), (2, 3), (2, 4)],
    ]
    assert [r["loss"] for r in lines[-2:]] == [2.0, 2.0]


def test_seconds_go_on_from_the_last_line_of_the_round_that_is_kept(tmp_path):
    """They fell within a stage that was continued, whose first lines stay."""
    for tags, start, seconds in ((FIRST, 0, {1: 5.0}), (SECOND, 0, {1: 2.0, 2: 4.0, 3: 6.0})):
        with MetricsWriter(tmp_path, tags, start) as writer:
            for step, value in seconds.items():
                writer.write(step, {"seconds": value})
    with MetricsWriter(tmp_path, SECOND, 2) as writer:
        writer.write(3, {"seconds": 1.5})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [5.0, 2.0, 4.0, 5.5]


def test_a_line_cut_by_a_kill_does_not_stay(tmp_path):
    write(tmp_path, FIRST, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    write(tmp_path, FIRST, 1, [2, 3])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_value_that_is_not_finite_becomes_null(tmp_path):
    write(tmp_path, FIRST, 0, [1], loss=float("nan"))
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_a_full_disk_is_said_at_once(tmp_path):
    """It killed the thread of TensorBoard's own writer, and training hung for ever."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(writer):
        for step in range(100):
            writer.write(step, {"loss": 1.0})

    with MetricsWriter(tmp_path, FIRST) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                fill(writer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_lines_that_cannot_be_read_are_named(tmp_path, caplog):
    write(tmp_path, FIRST, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\0\xff\0", *lines[1:]]))
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    assert f"{path}: skipped unreadable lines: 2" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [{"step": "2"}, {"step": None}, {"step": 2, "seconds": "a"}, {"step": 2, "seconds": [1]}],
)
def test_a_line_whose_numbers_are_damaged_does_not_stop_a_resume(tmp_path, caplog, damage):
    write(tmp_path, FIRST, 0, [1])
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(FIRST | damage) + "\n")
    with MetricsWriter(tmp_path, FIRST, 2) as writer:
        writer.write(3, {"loss": 1.0, "seconds": 4.0})
    assert [(r["step"], r.get("seconds")) for r in read_metrics(path)] == [(1, None), (3, 4.0)]
    assert f"{path}: skipped unreadable lines: 2" in caplog.text


def test_tensorboard_has_a_run_per_round(tmp_path):
    write(tmp_path, FIRST, 0, [1])
    write(tmp_path, SECOND, 0, [1])
    runs = {path.name for path in (tmp_path / "tensorboard").iterdir()}
    assert runs == {"distill_01", "distill_02"}
