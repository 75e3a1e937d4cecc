"""Compiling ahead, end to end. Oracle: FLOPs from the sizes alone, bytes from the shardings.

Virtual CPU devices stand for GPUs: the TPU compiler is no part of the test requirements. What is compiled for
TPU slices is reported in docs/measurements/ahead.md.
"""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch.ahead import report
from sdtt_jax.errors import ConfigError
from tests.forking import Finished, run_module

ROOT = Path(__file__).parent.parent.parent
SMOKE = "--config=experiments/configs/smoke.py"


def call(*arguments: str) -> Finished:
    return run_module("launch.compile", arguments)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    output = tmp_path_factory.mktemp("compile") / "out.json"
    done = call(
        SMOKE,
        "--topology=h100:4",
        "--batch_per_chip=8",
        "--config.mesh.fsdp=2",
        # Muon has matrix products of its own, a fifth of a step at this size and nothing at the paper's.
        "--config.teacher.train.optimizer.name=adam",
        "--config.teacher.train.optimizer.adam_learning_rate=0",
        f"--output={output}",
    )
    assert done.status == 0, done.stderr
    return done, {r["program"]: r for r in json.loads(output.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distill", "teacher", "sample"])
def test_counted_flops_agree_with_those_from_the_sizes(compiled, kind):
    """Within 5 %, at the sizes of `smoke.py`, where what the sizes leave out weighs most."""
    record = compiled[1][kind]
    assert record["flops"]["counted_over_expected"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_every_figure_says_how_it_was_found(compiled):
    done, records = compiled
    for word in ("from the shardings", "compiled", "counted", "predicted", "peak memory", "fits"):
        assert word in done.stdout, word
    assert set(records) == {"distill", "teacher", "sample"}
    distill = records["distill"]
    assert distill["mesh"] == {"data": 2, "fsdp": 2, "model": 1}
    assert set(distill["state_bytes"]) == {"parameters", "optimizer", "average", "teacher"}
    assert distill["state_bytes"]["teacher"] >= distill["state_bytes"]["parameters"]
    assert {"data", "fsdp"} == {a for c in distill["collectives"] for a in c["axes"]}
    predicted = distill["predicted"]
    # The CPU compiler, which stands in for a GPU's, cannot tell what goes through memory.
    assert predicted["memory_seconds"] is None
    parts = [predicted[f"{n}_seconds"] for n in ("compute", "network")]
    assert predicted["seconds"] == max(parts)
    assert predicted["seconds_without_overlap"] == pytest.approx(sum(parts))


@pytest.mark.slow
def test_the_causal_model_that_the_sampler_races_against(tmp_path):
    """It writes token by token: FLOPs come from the sizes, and every step reads the whole cache."""
    output = tmp_path / "out.json"
    arguments = ("--topology=h100:2", "--batch_per_chip=4", "--programs=causal")
    done = call(SMOKE, *arguments, f"--output={output}")
    assert done.status == 0, done.stderr
    [record] = json.loads(output.read_text())
    assert record["program"] == "causal"
    assert record["flops"]["counted_over_expected"] == pytest.approx(1, abs=0.1)
    assert record["flops"]["recomputed"] > 0
    # The cache, of two layers, four texts and 32 positions, is given to the program, which writes into it.
    cache = 2 * 2 * 4 * 32 * 32 * 4
    assert record["arguments_bytes"] > record["state_bytes"]["parameters"] + cache


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--search", "--batch_per_chip=2"],
            "--search finds the batch per chip, so --batch_per_chip",
        ),
        (
            ["--search", "--config.mesh.fsdp=2"],
            "--search finds the mesh, so --config.mesh.fsdp would",
        ),
        (["--search_seconds=1"], "Nothing is searched without --search, so --search_seconds would"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(given, said):
    done = call(SMOKE, "--topology=h100:2", *given)
    assert done.status == 2
    assert said in done.stderr


@pytest.mark.slow
def test_a_search_finds_a_mesh_and_a_batch(tmp_path):
    output = tmp_path / "out.json"
    done = call(
        SMOKE,
        "--topology=h100:2",
        "--search",
        "--search_seconds=1",
        "--programs=distill",
        f"--output={output}",
    )
    assert done.status == 0, done.stderr
    best = json.loads(output.read_text())[0]
    assert best["fits"]
    assert best["batch_per_chip"] >= 8


def test_the_table_by_operation_adds_up_and_gathers_what_is_small():
    console = Console(width=100, record=True, file=io.StringIO())
    record = {"memory_traffic_by_operation": {"mix": 3e9, "norm": 1e9, "mask": 1e6, "key": 1e6}}
    console.print(report.operations(record))
    rows = [line for line in console.export_text().splitlines() if "│" in line]
    assert [[cell.strip() for cell in row.strip("│").split("│")] for row in rows] == [
        ["mix", "3.00", "75.0%"],
        ["norm", "1.00", "25.0%"],
        ["2 others", "0.00", "0.0%"],
    ]


@pytest.mark.parametrize("width", [40, 60])
def test_no_word_or_figure_is_cut_on_a_narrow_terminal(width):
    """Oracle: the record's own names and figures, and the width. At 40 columns "peak m…" was one of them."""
    console = Console(width=width, record=True, file=io.StringIO())
    state = dict.fromkeys(("parameters", "optimizer", "average", "teacher"), 1.234e12)
    found = {"program": "distill", "topology": "v5e:2x4", "mesh": {"data": 8}, "chips": 8}
    found |= {"state_bytes": state, "usable_bytes": 16e9, "peak_bytes": 2e9, "fits": False}
    report.show(found | {"batch_per_chip": 32.0, "temporaries_bytes": 3e9}, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for whole in (*state, "1234.000 GB", "activations,", "gradients", "peak memory", "shardings"):
        assert whole in text, whole
    assert "…" not in text


def test_what_is_found_is_kept_when_a_later_program_fails(tmp_path):
    """Of a search, the best is printed, with its traffic by operation if that is asked for."""
    output, console = tmp_path / "out.json", Console(width=200, record=True, file=io.StringIO())
    found = {"topology": "v5e:2x4", "mesh": {"data": 8}, "chips": 8, "fits": True}
    found |= {"program": "distill", "state_bytes": {}, "usable_bytes": 16e9, "peak_bytes": 2e9}
    best = found | {"batch_per_chip": 32.0, "memory_traffic_by_operation": {"mix": 3e9}}
    second = found | {"batch_per_chip": 8.0, "memory_traffic_by_operation": {"norm": 3e9}}

    def programs():
        yield [best, second]
        raise ConfigError("the teacher's")

    with pytest.raises(ConfigError, match="the teacher's"):
        report.publish(programs(), console, output, by_operation=True)
    assert json.loads(output.read_text()) == [best, second]
    text = console.export_text()
    assert "32 sequences per chip" in text
    assert "mix" in text
    assert "norm" not in text


WRONG = (
    ((SMOKE,), "--topology is missing"),
    (("--topology=h100:2",), "--config is missing"),
    ((SMOKE, "--topology=v5f:2x4"), "did you mean 'v5"),
    (
        (SMOKE, "--topology=h100:2", "--programs=train"),
        "--programs='train' is unknown; choose one of distill, teacher, sample, causal",
    ),
    ((SMOKE, "--topology=h100:3", "--config.mesh.fsdp=2"), "mesh.fsdp=2 does not divide the 3"),
    ((SMOKE, "--topology=h100:2", "--config.model.embed=3"), "config.model has no field 'embed'"),
)


def test_wrong_input_is_one_line_that_names_what_to_change():
    for arguments, message in WRONG:
        done = call(*arguments)
        assert done.status == 2, done
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert message in lines[0]
