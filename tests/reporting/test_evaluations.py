"""Results read back. Oracle: the numbers that were written into the file."""

import dataclasses
import json

import pytest

from sdtt_jax.errors import DataError
from sdtt_jax.evaluation.record import FOLDER, FORMAT
from sdtt_jax.reporting import write_report
from sdtt_jax.reporting.evaluations import (
    Evaluation,
    race,
    race_batches,
    read_evaluation,
    read_evaluations,
    tables,
)
from sdtt_jax.reporting.race import race_panel


def _texts(kind, perplexity, **facts):
    return {
        "kind": kind,
        "gen_ppl": perplexity,
        "gen_ppl_low": perplexity - 1,
        "gen_ppl_high": perplexity + 1,
        "entropy": 2.5,
        "nfe": 8.0,
        **facts,
    }


def _timed(kind, batch, seconds, **facts):
    return {
        "kind": kind,
        "batch": batch,
        "seconds": seconds,
        "tokens_per_second": 64 * batch / seconds,
        "seconds_per_call": seconds / 8,
        "nfe": 8,
        "compile_s": 1.0,
        **facts,
    }


def _results(scale=1.0):
    items = {
        "generation/unconditional/steps_0008": _texts("diffusion", 16.0 * scale, num_steps=8),
        "generation/unconditional/steps_0016": _texts("diffusion", 12.0 * scale, num_steps=16),
        "generation/unconditional/autoregressive": _texts("autoregressive", 4.0),
        "generation/unconditional/real_text": _texts("real", 3.0),
        "likelihood/antithetic": {
            "kind": "diffusion",
            "estimator": "antithetic",
            "num_texts": 9,
            "length": 64,
            "source": "a file",
            "perplexity": 5.5,
            "perplexity_low": 5.0,
            "perplexity_high": 6.0,
            "bits_per_token": 2.46,
            "masking_error": 0.01,
        },
        "latency/steps_0008_batch_008": _timed("diffusion", 8, 0.5, num_steps=8),
        "latency/steps_0016_batch_008": _timed("diffusion", 8, 1.0, num_steps=16),
        "latency/autoregressive_batch_008": _timed("autoregressive", 8, 3.0, what="as large"),
        "latency/baseline_batch_008": _timed("autoregressive", 8, 2.0, what="the baseline"),
    }
    return {
        "format": FORMAT,
        "model": {"path": "runs/demo", "digest": "0" * 64},
        "items": {name: {"inputs": {}, "result": item} for name, item in items.items()},
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name, scale in (("round_02", 1.0), ("teacher", 1.5)):
        path = tmp_path / FOLDER / f"{name}.json"
        path.write_text(json.dumps(_results(scale)))
    return tmp_path


def test_tables_hold_every_result_and_no_empty_column(folder):
    found = {table.title: table for table in tables(read_evaluations(folder))}
    assert set(found) == {"Generated texts", "Likelihood of held-out text", "Latency"}
    texts = found["Generated texts"]
    assert "MAUVE" not in texts.columns
    assert [row[:2] for row in texts.rows] == [
        ("teacher", "8 steps"),
        ("teacher", "16 steps"),
        ("round_02", "8 steps"),
        ("round_02", "16 steps"),
        ("–", "causal"),
        ("–", "real text"),
    ]
    assert "16.0 (15.0–17.0)" in texts.rows[2]
    assert [row[:3] for row in found["Latency"].rows[:3]] == [
        ("teacher", "8 steps", "8"),
        ("teacher", "16 steps", "8"),
        ("–", "causal: as large", "8"),
    ]
    likelihood = found["Likelihood of held-out text"]
    assert likelihood.rows[0][3] == "≤ 5.50 (5.00–6.00)"
    # 0.01 nats, as they are in the file, beside a column of bits.
    assert likelihood.columns[4:] == ("bits per token", "masking error")
    assert likelihood.rows[0][4:] == ("2.460", "0.0144")
    assert all(len(row) == len(t.columns) for t in found.values() for row in t.rows)
    # Real texts of two runs differ: each has the name of its evaluation.
    here = read_evaluations(folder)
    there = dataclasses.replace(here[0], name="there", items=_other_real_text(here[0].items))
    texts = next(t for t in tables([*here, there]) if t.title == "Generated texts")
    assert [row[:2] for row in texts.rows[-3:]] == [
        ("–", "causal"),
        ("teacher", "real text"),
        ("there", "real text"),
    ]


def _other_real_text(items):
    name = next(name for name, item in items.items() if item["kind"] == "real")
    return dict(items) | {name: dict(items[name]) | {"gen_ppl": 99.0}}


def _writers(folder, used):
    """The column of samplers, where the model's texts of 8 and of 16 steps were written as `used` says."""
    for path in (folder / FOLDER).glob("*.json"):
        content = json.loads(path.read_text())
        for n in (8, 16):
            inputs = {"sampler": {"num_steps": n} | used.get((path.stem, n), {})}
            content["items"][f"generation/unconditional/steps_{n:04d}"]["inputs"] = inputs
        path.write_text(json.dumps(content))
    texts = next(t for t in tables(read_evaluations(folder)) if t.title == "Generated texts")
    if "sampler" not in texts.columns:
        return None
    return [row[texts.columns.index("sampler")] for row in texts.rows]


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ({"mode": "grid", "temperature": 1.0}, None),
        ({"mode": "confidence"}, ["mode=grid", "mode=grid", "mode=confidence", "mode=grid"]),
        # The others' file is older than the field.
        ({"guidance": 2.0}, ["guidance=0.0", "guidance=0.0", "guidance=2.0", "guidance=0.0"]),
    ],
)
def test_where_samplers_differ_a_column_says_in_what(folder, sampler, said):
    column = _writers(folder, {("round_02", 8): sampler})
    assert column == (said and [*said, "–", "–"])


def test_a_learnt_schedule_is_named_without_its_numbers(folder):
    """They differ at every number of steps, and there may be a thousand of them."""
    learnt = {n: {"mode": f"learnt:counts={'2/' * n}2,stop=filled"} for n in (8, 16)}
    used = {(name, n): learnt[n] for name in ("teacher", "round_02") for n in (8, 16)}
    assert _writers(folder, used) is None
    del used["teacher", 8]
    assert _writers(folder, used)[:2] == ["mode=grid", "mode=learnt:stop=filled"]


def test_where_dtypes_differ_a_column_says_which(tmp_path):
    """So that rows of one model in two dtypes are not taken for one another."""
    for name, dtype in (("one", "float32"), ("two", "bfloat16")):
        content = _results()
        for item in content["items"].values():
            item["inputs"]["compute_dtype"] = dtype
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [read_evaluation(tmp_path / f"{name}.json") for name in ("one", "two")]
    for table in tables(files):
        column = table.columns.index("dtype")
        assert {row[column] for row in table.rows} >= {"float32", "bfloat16"}
    assert not any("dtype" in table.columns for table in tables(files[:1]))


def test_the_race_pairs_quality_with_latency(folder):
    """A causal model's own timing is used where there is one; the model counts once per run."""
    evaluations = read_evaluations(folder)
    assert race_batches(evaluations) == [8]
    points = {(p.model, p.num_steps): (p.seconds, p.gen_ppl) for p in race(evaluations, 8)}
    assert points == {
        ("round_02", 8): (0.5, 16.0),
        ("round_02", 16): (1.0, 12.0),
        ("causal", 0): (2.0, 4.0),
        ("teacher", 8): (0.5, 24.0),
        ("teacher", 16): (1.0, 18.0),
    }
    assert race(evaluations, 1) == []


@pytest.mark.parametrize(
    ("text", "timing", "left"),
    [
        # As the suites write them; what an older file lacks may be anything.
        ({}, {"sampler": {"mode": "grid"}, "timing": {"length": 64}}, {8, 16, 0}),
        ({"sampler": {"mode": "grid"}}, {"sampler": {"mode": "grid", "top_k": 0}}, {8, 16, 0}),
        ({"sampler": {"mode": "grid"}}, {"sampler": {"mode": "confidence"}}, {16, 0}),
        ({"sampler": {"temperature": 0.5}}, {"sampler": {"temperature": 1.0}}, {16, 0}),
        ({"length": 16}, {"timing": {"length": 64}}, {16, 0}),
        ({"model": {"compute_dtype": "float32"}}, {"compute_dtype": "float32"}, {8, 16, 0}),
        ({"model": {"compute_dtype": "float32"}}, {"compute_dtype": "bfloat16"}, {16, 0}),
        ({"helper": {"digest": "a"}}, {"helper": {"digest": "b"}}, {16, 0}),
    ],
)
def test_the_race_does_not_pair_texts_with_timings_of_another_way_to_write(
    tmp_path, text, timing, left
):
    content = _results()
    content["items"]["generation/unconditional/steps_0008"]["inputs"] = text
    content["items"]["latency/steps_0008_batch_008"]["inputs"] = timing
    (tmp_path / "one.json").write_text(json.dumps(content))
    points = race([read_evaluation(tmp_path / "one.json")], 8)
    assert {point.num_steps for point in points} == left


def test_the_race_does_not_pair_causal_texts_with_timings_of_another_length(tmp_path):
    content = _results()
    content["items"]["generation/unconditional/autoregressive"]["inputs"] = {
        "length": 64, "sampler": {"temperature": 0.9},
    }  # fmt: skip
    timing = content["items"]["latency/baseline_batch_008"]["inputs"]
    text = content["items"]["generation/unconditional/autoregressive"]["inputs"]
    path = tmp_path / "one.json"
    for dtype, raced in (("float32", True), ("bfloat16", False)):
        text["model"] = {"compute_dtype": "float32"}
        timing |= {"compute_dtype": "float32", "network": {"compute_dtype": dtype}}
        path.write_text(json.dumps(content))
        assert any(point.causal for point in race([read_evaluation(path)], 8)) is raced
    del timing["network"]
    for length, raced in ((64, True), (16, False)):
        timing["timing"] = {"length": length}
        path.write_text(json.dumps(content))
        assert any(point.causal for point in race([read_evaluation(path)], 8)) is raced


def test_causal_baselines_of_two_runs_have_two_names_and_no_line_between_them(tmp_path):
    points = []
    for name, perplexity in (("here", 4.0), ("there", 40.0)):
        content = _results()
        baseline = content["items"]["generation/unconditional/autoregressive"]
        baseline["result"] = _texts("autoregressive", perplexity)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        points.append(read_evaluation(tmp_path / f"{name}.json"))
    raced = race(points, 8)
    assert {p.model: p.gen_ppl for p in raced if p.causal} == {
        "causal of here": 4.0,
        "causal of there": 40.0,
    }
    lines = {s.label: s.line for s in race_panel(raced, 8).series}
    assert lines["causal of here"] == lines["causal of there"] == ""
    assert lines["here"] == "line"


def test_a_single_text_has_no_interval_to_show(tmp_path):
    """JSON has null for a missing interval; the race then draws a point without a bar."""
    content = _results()
    content["items"]["generation/unconditional/steps_0008"]["result"] |= {
        "gen_ppl_low": None,
        "gen_ppl_high": None,
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    evaluations = [read_evaluation(tmp_path / "one.json")]
    assert tables(evaluations)[0].rows[0][3] == "16.0"
    [point] = [point for point in race(evaluations, 8) if point.num_steps == 8]
    assert point.low == point.gen_ppl == point.high


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("nonsense", "not JSON"),
        ('{"items": {}}', "not a result"),
        ('{"items": {}', "not JSON .*; remove it and evaluate the model again"),
        (
            json.dumps({"format": FORMAT, "model": {}, "items": {}}),
            "damaged .* evaluate the model again",
        ),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, content, named):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=named):
        read_evaluation(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_evaluation(tmp_path / "absent.json")


def test_models_that_the_run_does_not_have_any_more_are_not_shown(tmp_path):
    """Two rounds, of which one was removed, alpha that was trained again, and an early round of coupled.

    Oracle: the digests of `results.json`. Without it, or with one of an earlier version, all are shown.
    """
    measured = {
        "teacher": ("teacher", None, "t"),
        "judge": ("judge", None, "old"),
        "round_01": ("distill", 1, "1"),
        "round_02": ("distill", 2, "2"),
        "alpha_01": ("alpha", 1, "old"),
        "coupled_01": ("coupled", 1, "c"),
        "coupled_02": ("coupled", 2, "old"),
        "mine": ("distill", 1, "old"),
        "elsewhere": ("distill", 2, "e"),
        "exits": ("distill", 2, "v"),
    }
    for name, (stage, number, digest) in measured.items():
        facts = {"stage": stage} | ({"round": number} if number else {})
        facts |= {"variant": {}} if name == "exits" else {}
        run = "other" if name == "elsewhere" else tmp_path
        folder = "rounds" if stage == "distill" else stage
        path = f"{run}/{folder}/{number:02d}/final" if number else f"{run}/{folder}/final"
        content = _results() | {"model": {"path": path, "digest": digest, "facts": facts}}
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        (tmp_path / FOLDER / f"{name}.json").write_text(json.dumps(content))
    shown = [each.name for each in read_evaluations(tmp_path)]
    assert {*shown} == {*measured}
    results = {
        "teacher": {"params_digest": "t"},
        "baseline_ar": {"params_digest": "new"},
        "rounds": [{"round": 1, "params_digest": "1"}],
        "others": {"alpha": {"params_digest": "new"}},
        "coupled": {"round": 2, "params_digest": "new"},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert [each.name for each in read_evaluations(tmp_path)] == shown
    places = ("teacher", "judge", "rounds/01", "alpha/01", "coupled/01", "coupled/02")
    results["delivered"] = dict.fromkeys(places, "as stored")
    (tmp_path / "results.json").write_text(json.dumps(results))
    left = {each.name for each in read_evaluations(tmp_path)}
    assert left == {"teacher", "round_01", "coupled_01", "elsewhere", "exits"}


def test_the_report_of_a_run_shows_them(make_workdir):
    workdir = make_workdir()
    assert 'id="evaluation"' not in write_report(workdir).read_text(encoding="utf-8")
    (workdir / FOLDER).mkdir()
    (workdir / FOLDER / "round_02.json").write_text(json.dumps(_results()))
    page = write_report(workdir).read_text(encoding="utf-8")
    for word in ('id="evaluation"', "against latency, batch 8", "Likelihood of held-out text"):
        assert word in page


def test_an_entropy_that_no_temperature_reaches_is_said_in_the_table():
    """Its column was left out, so that a table of perplexities had none. Oracle: the items."""
    item = {"kind": "diffusion", "mode": "grid", "num_steps": 4, "nfe": 4.0, "temperature": None}
    items = {"frontier/matched/grid/steps_0004": item | {"gen_ppl": None}}
    [table] = tables([Evaluation("teacher", items)])
    assert dict(zip(table.columns, table.rows[0], strict=True))["perplexity"] == "not reached"
