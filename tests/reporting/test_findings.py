"""The headline claims what the numbers allow. Oracle: hand-made curves with known crossings."""

import math

import pytest

from sdtt_jax.reporting.findings import equivalent_steps, find
from sdtt_jax.reporting.record import Quality, read_run
from sdtt_jax.reporting.report import render
from sdtt_jax.reporting.run_figures import few_calls_panel, forest_chart, quality_curves

POWER_LAW = {k: Quality(gen_ppl=1000.0 * k**-0.5) for k in (4, 8, 16, 32, 64)}


def test_equivalent_steps_invert_a_power_law_exactly():
    """Log-log interpolation is exact on ppl = 1000 / sqrt(steps); oracle: its inverse."""
    for steps in (5.0, 11.3, 16.0, 50.0):
        found = equivalent_steps(POWER_LAW, 1000.0 * steps**-0.5, start=8)
        assert found == pytest.approx(steps, rel=1e-9)


def test_a_student_beyond_either_end_of_the_curve_has_no_equivalent():
    assert equivalent_steps(POWER_LAW, 1.0, start=8) == math.inf
    assert equivalent_steps(POWER_LAW, 5000.0, start=8) == 0.0


def test_the_first_crossing_counts_on_a_curve_that_turns():
    curve = {4: Quality(300.0), 8: Quality(200.0), 16: Quality(100.0), 32: Quality(180.0)}
    assert 8 < equivalent_steps(curve, 150.0, start=8) < 16


def test_a_clear_gain_is_told_in_steps_of_the_teacher(make_workdir):
    findings = find(read_run(make_workdir(log_ratio=-0.06)))
    assert findings.headline == "The student at 8 steps writes as well as its teacher at 13"
    assert findings.warning == ""


def test_a_gain_too_small_for_a_whole_step_is_told_in_percent(make_workdir):
    def narrow(results):
        results["rounds"][-1]["paired"]["8"] = {"log_ratio": -0.01, "low": -0.015, "high": -0.005}

    findings = find(read_run(make_workdir(change_results=narrow)))
    assert findings.headline == "At 8 steps the student writes 1.0\u202f% better than its teacher"


def test_an_interval_over_zero_is_no_gain(make_workdir):
    findings = find(read_run(make_workdir(log_ratio=-0.005)))
    assert findings.headline == "At 8 steps the student cannot be told apart from its teacher"


def test_a_loss_is_called_a_loss(make_workdir):
    findings = find(read_run(make_workdir(log_ratio=0.05)))
    assert findings.headline == "At 8 steps the student writes 16\u202f% worse than its teacher"


@pytest.mark.parametrize("log_ratio", [-0.06, 0.0, 0.05])
def test_without_an_interval_the_headline_claims_no_direction(make_workdir, log_ratio):
    """A single text has none; chance may have made the one or the other lower."""

    def one_text(results):
        results["rounds"][-1]["paired"]["8"] |= {"low": None, "high": None}

    findings = find(read_run(make_workdir(log_ratio=log_ratio, change_results=one_text)))
    assert findings.headline == "At 8 steps no interval tells the student from its teacher"
    assert "the teacher needs" not in {highlight.name for highlight in findings.highlights}
    said = {-0.06: "lower, without", 0.0: ": no difference, without", 0.05: "higher, without"}
    assert said[log_ratio] in findings.sentences[0]


@pytest.mark.parametrize(
    ("log_ratios", "said"),
    [
        # The teacher's perplexity is 80 over the number of its calls.
        ({1: -0.8, 2: -0.5, 4: -0.1}, "writes as well as its teacher at 3 calls"),
        ({1: -0.8, 2: -1.2, 4: -0.9}, "writes better than its teacher at 4 calls"),
        # Better by 0.7 %, but by its interval perhaps worse.
        ({1: -0.8, 2: -0.7, 4: -0.1}, "writes as well as its teacher at 4 calls"),
        ({1: -0.8, 2: -0.1, 4: -0.1}, "gains 9.5\u202f%"),
    ],
)
def test_what_a_noise_coupled_student_gains_stands_in_the_headline_at_the_calls_nearest_to_two(
    make_workdir, log_ratios, said
):
    findings = find(read_run(make_workdir(coupled_log_ratios=log_ratios)))
    assert findings.headline == (
        "The student at 8 steps writes as well as its teacher at 13; "
        f"at 2 calls a noise-coupled student {said}"
    )
    assert findings.highlights[-2].name == "noise-coupled, 2 calls"


def test_what_two_calls_are_worth_is_told_by_the_teacher_at_more_calls_than_the_student(
    make_workdir,
):
    """Oracle: half-way in the logarithm between the teacher's 40 at 2 calls and its 10 at 8."""

    def go_on(results):
        results["coupled"]["teacher_calls"] = {"8": {"teacher_matched": {"gen_ppl": 10.0}}}

    ratios = {1: -0.8, 2: -math.log(2)}
    findings = find(read_run(make_workdir(coupled_log_ratios=ratios, change_results=go_on)))
    assert findings.headline.endswith(
        "at 2 calls a noise-coupled student writes as well as its teacher at 4 calls"
    )


def test_of_two_noise_coupled_students_the_headline_is_about_the_last(make_workdir):
    first, last = {2: -0.5, 4: -0.1}, {2: -0.9, 4: -0.5}
    findings = find(read_run(make_workdir(coupled_log_ratios=first, idlm_log_ratios=last)))
    assert findings.headline.endswith(
        "at 2 calls a noise-coupled student writes better than its teacher at 4 calls"
    )


def test_a_noise_coupled_student_that_may_be_no_better_is_not_in_the_headline(make_workdir):
    findings = find(read_run(make_workdir(coupled_log_ratios={1: 0.1, 2: -0.02})))
    assert findings.headline == "The student at 8 steps writes as well as its teacher at 13"


@pytest.mark.parametrize("entropy", [3.65, 0.0])
@pytest.mark.parametrize("of", ["matched", "teacher_matched"])
def test_what_does_not_reach_the_entropy_of_real_text_is_not_compared(make_workdir, of, entropy):
    """Real text has 3.68 nats; the run clamps to the nearest temperature that it tried."""

    def fall_short(results):
        entry = results["coupled"]["calls"]["2"]
        entry["teacher_matched"] = {"gen_ppl": 40.0, "entropy": 3.68}
        entry[of]["entropy"] = entropy

    ratios = {1: -0.8, 2: -0.5, 4: 0.1}
    run = read_run(make_workdir(coupled_log_ratios=ratios, change_results=fall_short))
    assert [few.reached for few in run.few_calls] == [True, False, True]
    assert "; at 1 call a noise-coupled student" in find(run).headline
    teacher, student = few_calls_panel(run).series[:2]
    assert student.x == (1.0, 4.0)
    assert teacher.x == ((1.0, 2.0, 4.0) if of == "matched" else (1.0, 4.0))
    page = " ".join(render(run).split())
    assert "At 2 network calls, no temperature that was tried" in page
    assert "At two network calls its texts" not in page
    assert page.count("<td>not reached</td>") == 1


def test_a_student_above_the_entropy_of_real_text_is_compared_as_it_is(make_workdir):
    """Its argmax has more entropy: a comparison with a teacher at 3.68 nats counts against it."""

    def rise(results):
        for entry in results["coupled"]["calls"].values():
            entry["teacher_matched"] = {"gen_ppl": 40.0, "entropy": 3.68}
        results["coupled"]["calls"]["2"]["matched"]["entropy"] = 3.68 * 1.022

    run = read_run(make_workdir(coupled_log_ratios={1: -0.8, 2: -0.5}, change_results=rise))
    assert [few.reached for few in run.few_calls] == [True, True]
    assert "; at 2 calls a noise-coupled student" in find(run).headline
    assert few_calls_panel(run).series[1].x == (1.0, 2.0)
    page = " ".join(render(run).split())
    assert (
        ". Even without a temperature the student has more entropy than real text, by 2.2 %" in page
    )
    assert "or, where the table has a star, up to 2.2 % above it. Bands" in page
    assert page.count("%)*</td>") == 1
    assert "not reached" not in page


def test_a_noise_coupled_student_that_never_reaches_that_entropy_is_not_in_the_headline(
    make_workdir,
):
    def fall_short(results):
        results["rounds"] = []
        results["coupled"]["calls"]["2"]["matched"]["entropy"] = 3.5

    run = read_run(make_workdir(coupled_log_ratios={2: -0.5}, change_results=fall_short))
    assert find(run).headline == (
        "Teacher and noise-coupled student were not compared at equal entropy"
    )


def test_a_student_better_than_all_of_the_teacher_is_compared_with_its_best(make_workdir):
    findings = find(read_run(make_workdir(log_ratio=-0.4)))
    assert findings.headline.startswith(
        "The student at 8 steps writes better than its teacher at 64"
    )


def test_a_student_that_may_be_no_better_than_the_best_of_its_teacher_writes_as_well(make_workdir):
    """Round 2 of english.py had 836 at 8 steps, 26 to 11 % below its teacher, which had 849 at 16 steps."""

    def end(results):
        best = results["teacher"]["steps"]["16"]["gen_ppl"]
        results["teacher"]["steps"] = {
            k: v for k, v in results["teacher"]["steps"].items() if int(k) <= 16
        }
        here = results["teacher"]["steps"]["8"]["gen_ppl"]
        paired = {"log_ratio": math.log(0.98 * best / here), "high": math.log(1.03 * best / here)}
        results["rounds"][-1]["paired"]["8"] = paired | {"low": math.log(0.9 * best / here)}

    findings = find(read_run(make_workdir(change_results=end)))
    assert findings.headline == "The student at 8 steps writes as well as its teacher at 16"


def test_variety_lost_is_said_in_the_headline(make_workdir):
    def repeat(results):
        results["rounds"][-1]["steps"]["8"]["entropy"] = 3.2

    findings = find(read_run(make_workdir(change_results=repeat)))
    assert findings.headline.endswith("with less variety")
    assert "13\u202f% below" in findings.warning


def test_what_cannot_be_told_apart_is_worth_no_steps_that_have_no_bounds(make_workdir):
    """The low end is beyond all steps of the teacher, so the number in between has no interval."""

    def wide(results):
        results["num_texts"] = 1
        pair = {"log_ratio": -0.06, "low": -9.0, "high": 0.05}
        results["rounds"][-1]["paired"]["8"] = pair

    findings = find(read_run(make_workdir(change_results=wide)))
    assert findings.headline == "At 8 steps the student cannot be told apart from its teacher"
    assert "1 text paired by its random key" in findings.sentences[0]
    assert "the teacher needs" not in {highlight.name for highlight in findings.highlights}


def test_without_a_paired_interval_chance_is_not_ruled_out(make_workdir):
    def drop(results):
        for entry in results["rounds"]:
            del entry["paired"]

    findings = find(read_run(make_workdir(change_results=drop)))
    assert "chance is not ruled out" in findings.sentences[0]


@pytest.mark.parametrize(("evaluated", "rounds"), [(False, 2), (True, 0)])
def test_a_run_without_a_measured_student_claims_nothing(make_workdir, evaluated, rounds):
    findings = find(read_run(make_workdir(evaluated=evaluated, rounds=rounds)))
    assert findings.headline in ("Nothing is measured yet", "A teacher, and no student yet")
    assert findings.highlights == ()
    # It may have been stopped after some items, which the page shows.
    assert evaluated or findings.sentences[0].endswith("the evaluate stage has not finished.")


@pytest.mark.parametrize(
    ("log_ratio", "said"),
    [
        (-0.7, "At 2 calls a noise-coupled student gains 50\u202f%"),
        (-0.02, "No gain of the noise-coupled student is certain"),
    ],
)
def test_without_rounds_the_headline_is_about_the_noise_coupled_student(
    make_workdir, log_ratio, said
):
    """As of a run whose only distiller is `coupled`."""

    def no_rounds(results):
        results["rounds"] = []

    run = read_run(make_workdir(coupled_log_ratios={2: log_ratio}, change_results=no_rounds))
    assert find(run).headline == said
    assert "There is no student yet" not in render(run)


def test_without_rounds_the_page_speaks_of_the_other_distillers_student(make_workdir):
    def only_idlm(results):
        [last] = results["rounds"][-1:]
        results["rounds"] = []
        results["others"] = {"idlm": {"steps": last["steps"], "paired": last["paired"]}}

    run = read_run(make_workdir(change_results=only_idlm))
    assert find(run).headline == "The student at 8 steps writes as well as its teacher at 13"
    assert [curve.label for curve in quality_curves(run)] == ["teacher", "idlm"]
    assert {row.name for row in forest_chart(run).rows} == {"idlm"}
    page = render(run)
    assert "What each student changed" in page
    assert "No gain share" not in page


def test_beside_rounds_it_speaks_of_the_last_round(make_workdir):
    def and_alpha(results):
        results["others"] = {"alpha": {"steps": results["teacher"]["steps"], "paired": {}}}

    run = read_run(make_workdir(rounds=2, change_results=and_alpha))
    assert find(run).headline.startswith("The student at 8 steps writes as well as")
    labels = [curve.label for curve in quality_curves(run)]
    assert labels == ["teacher", "round 1", "round 2", "alpha"]
    assert "What each student changed" in render(run)
