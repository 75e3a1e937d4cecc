"""The measurements of an accelerator, on a CPU at sizes that take seconds.

Oracles: what a record promises (rows, equal to the CPU's, without errors), and records written by hand.
"""

import importlib
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from unittest import mock

import jax
import pytest

from launch.accelerators import CHIPS, chip_of_device
from tests.forking import ROOT
from tools.accelerator import PARTS, profiling, steps
from tools.accelerator.__main__ import environment, main, measure, run_process
from tools.accelerator.bench import Bench, text
from tools.accelerator.page import page, table
from tools.accelerator.profiling import _rows, by_group, origins
from tools.accelerator.worker import run


@pytest.fixture
def bench(tmp_path):
    return Bench(until=time.monotonic() + 300, folder=tmp_path, file=tmp_path / "x.json", tiny=True)


def test_every_part_has_a_function_and_the_shares_make_up_the_whole():
    for name, part in PARTS.items():
        assert callable(getattr(importlib.import_module(f"tools.accelerator.{part.module}"), name))
    assert sum(part.share for part in PARTS.values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def built_once():
    """Lets parts that measure the same step share the compiled one; a measurement is of one call."""
    build, cases = steps.build, {}

    def built(job, log):
        if repr(job) not in cases:
            cases[repr(job)] = build(job, log)
        return cases[repr(job)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.accelerator.bench.MEASUREMENT_S", 0.0)
        # After each row it would look through all that this process's other tests left behind.
        patch.setattr("tools.accelerator.bench.gc", mock.Mock())
        for module in (steps, profiling):
            patch.setattr(module, "build", built)
        yield


# "medium" is "training" with another size.
@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("part", [part for part in PARTS if part != "medium"])
def test_each_part_runs_on_a_cpu(bench, part):
    if part == "profile" and find_spec("libtpu") and jax.config.jax_platforms is None:
        pytest.skip("without a TPU, libtpu's profiler ends the process: set JAX_PLATFORMS=cpu")
    run(part, bench)
    rows = [row for rows in bench.record["tables"].values() for row in rows]
    assert len(rows) > 0
    assert [row for row in rows if "error" in row] == []
    assert [row for row in rows if row.get("equal") is False] == []
    assert bench.record["skipped"] == []


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_on_a_cpu_a_part_leaves_libtpu_alone(monkeypatch, platform):
    """Where libtpu is installed without a TPU, the profiler would end the part by a segmentation fault."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    said = environment("profile", {"machine": {"platform": platform}})
    assert said.get("JAX_PLATFORMS") == ("cpu" if platform == "cpu" else None)
    assert "JAX_PLATFORMS" not in environment("machine", {})


def test_the_state_that_is_saved_is_no_more_compressible_than_a_trained_one(bench):
    """Oracle: the 23 random bits of a float32. A fresh state's moments are zeros, so that a third is left."""
    steps.saving(bench)
    ((row,),) = bench.record["tables"].values()
    assert row["on disk GB"] > 23 / 32 * row["GB"]


def test_a_row_that_fails_is_written_with_its_error_and_nothing_else_happens(bench):
    def fails():
        raise ValueError("no such kernel")

    bench.row("t", {"what": "one"}, fails)
    bench.row("t", {"what": "two"}, lambda: {"ms": 1.0})
    one, two = bench.record["tables"]["t"]
    assert (one["error"], two["ms"]) == ("ValueError: no such kernel", 1.0)


def test_what_there_is_no_time_for_is_left_out_with_a_sentence(bench):
    bench.until, bench.tiny = time.monotonic() + 5, False
    assert not bench.has(60, "the medium size")
    (sentence,) = bench.record["skipped"]
    assert sentence.startswith("the medium size was left out: it takes about 60 s")


def test_a_process_that_dies_or_hangs_says_how(capfd):
    died = "import os, sys; print('bad kernel', file=sys.stderr, flush=True); os.abort()"
    assert "status -6: bad kernel" in run_process([sys.executable, "-c", died], 60, {})
    assert "did not finish in its time and was killed" in run_process(
        [sys.executable, "-c", "while 1: pass"], 0.2, {}
    )
    assert "bad kernel" in capfd.readouterr().err


def test_a_signal_ends_the_process_of_the_part_too(tmp_path):
    """The part inherits the output, whose end therefore comes only when both are gone."""
    options = ["--tiny", "--minutes=2", "--parts=kernels", f"--output={tmp_path}"]
    tool = subprocess.Popen(
        [sys.executable, "-m", "tools.accelerator", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "part 1 of 1" in tool.stderr.readline()
    time.sleep(0.2)  # the process starts now
    tool.send_signal(signal.SIGTERM)
    _, said = tool.communicate(timeout=20)
    assert tool.returncode == 75, said
    assert "Stopped" in said


def test_parts_without_time_are_skipped_and_the_page_says_so(tmp_path):
    record = measure(["kernels", "race"], 0.01, tmp_path, tiny=True)
    assert all("no time was left" in part["skipped"][0] for part in record["parts"].values())
    assert (
        "- race was left out: no time was left for it" in (tmp_path / "accelerator.md").read_text()
    )


@pytest.mark.parametrize(
    "given",
    ["--minutes=0.01 --parts=machine,saving --tiny", "--minutes=0.02", "--minutes=0.01 --tiny"],
)
def test_the_page_names_the_command_that_ran_and_the_sizes_that_it_had(given, tmp_path):
    main(["", *given.split(), f"--output={tmp_path}"])
    written = (tmp_path / "accelerator.md").read_text()
    assert f"By `python -m tools.accelerator {given}`," in written
    assert ("1 × 32" in written) == ("--tiny" in given)


def test_the_page_has_a_section_for_each_part():
    parts = {
        "machine": {"device": "TPU v5e", "tables": {"matmul": [{"n": 8, "TFLOP/s": 190.04321}]}},
        "race": {"error": "The process died.", "tables": {}, "notes": ["Fast."]},
    }
    written = page({"command": "python -m x", "began": "today", "tiny": False, "parts": parts})
    assert written.startswith("# Measured on TPU v5e\n")
    assert "| n | TFLOP/s |\n| ---: | ---: |\n| 8 | 190 |" in written
    assert "\n- Fast.\n\n## The machine\n" in written
    assert "## The race\n\n- This part failed. The process died.\n" in written


def test_columns_are_those_of_all_rows():
    lines = table([{"what": "a|b", "ms": 0.123456}, {"what": "c", "error": "out of memory"}])
    lines = lines.splitlines()
    assert lines[0] == "| what | ms | error |"
    assert lines[2:] == ["| a\\|b | 0.1235 |  |", "| c |  | out of memory |"]


def test_numbers_have_four_digits():
    shown = [text(x) for x in (True, 3, 51200, 0.000123456, 41234.5, None, "x")]
    assert shown == ["yes", "3", "51,200", "0.0001235", "41,234", "–", "x"]


PROGRAM = """%inside.3 (x: f32[2]) -> f32[2] {
  %x = f32[2] parameter(0)
  ROOT %m.1 = f32[2] multiply(%x, %x), metadata={op_name="jit(f)/while/body/blocks/norm1/mul"}
}
ENTRY %main (y: f32[2]) -> f32[2] {
  %fusion.1 = f32[2] fusion(%y), calls=%inside.3, metadata={op_name="jit(f)/add" id=3}
  ROOT fusion.2 = f32[2] fusion(%fusion.1), kind=kLoop, calls=%inside.3
}
"""


def test_operations_are_named_by_their_origin_or_that_of_what_they_fuse():
    inside = "jit(f)/while/body/blocks/norm1/mul"
    assert origins(PROGRAM) == {"m.1": inside, "fusion.1": "jit(f)/add", "fusion.2": inside}


def test_rows_say_what_of_the_source_an_operation_is_also_where_jax_numbered_it():
    origin = {
        "fusion.1": "jit(f)/optimizer/add.3",
        "fusion.2": "jit(f)/transpose(jvp(DiT.hidden))/while/body/mlp/dot_general",
    }
    rows = _rows([(name, (1.0, 2)) for name in (*origin, "copy.4")], 4.0, origin)
    assert [row["from"] for row in rows] == [
        "optimizer/add",
        "DiT.hidden/mlp/dot_general (backward)",
        "",
    ]


def test_operations_are_summed_by_what_they_do():
    origin = {
        "custom-call.1": "jit(f)/blocks/mlp/up/dot_general",
        "fusion.2": "jit(f)/transpose(jvp(f))/blocks/mlp/up/dot_general",
        "fusion.3": "jit(f)/loss_rows/head/exp",
        "fusion.4": "jit(f)/optimizer/mul",
    }
    events = dict.fromkeys(origin, (1.0, 2)) | {"dot.5": (3.0, 1)}
    assert by_group(events, origin) == [
        ("matmuls, forward", (4.0, 3)),
        ("matmuls, backward", (1.0, 2)),
        ("all else, head and loss", (1.0, 2)),
        ("optimizer", (1.0, 2)),
    ]


def test_batches_double_and_after_two_the_largest_that_fits_comes_next(monkeypatch):
    monkeypatch.setattr(steps, "chip", lambda: CHIPS["h100"])  # 80 GB
    tried = [{"batch": 8, "compiled GB": 4.0}, {"batch": 16, "compiled GB": 6.0}]
    assert steps._next_batch(tried[:1], 1024) == 16
    assert steps._next_batch(tried, 1024) == 256  # 66 GB
    assert steps._next_batch(tried, 64) == 64


def test_chips_are_found_by_what_jax_calls_them():
    assert chip_of_device("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of_device("NVIDIA H100 PCIe") is None
    assert chip_of_device("TPU v5 lite") is CHIPS["v5e"]
    names = [name for chip in CHIPS.values() for name in chip.devices]
    assert len(names) == len(set(names)) >= len(CHIPS)
