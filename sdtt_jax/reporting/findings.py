"""What a run found, in plain words computed from its numbers.

The headline compares the last student with the first teacher at few steps. It claims no more
than the paired interval allows, and says so where entropy shows that variety was lost.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sdtt_jax.reporting.palette import count, number, percent
from sdtt_jax.reporting.record import Paired, Quality, Round, Run

FOCUS_STEPS = 8
"""Number of steps that the headline is about, where it was measured."""

ENTROPY_TOLERANCE = 0.05
"""Relative distance from the data's entropy beyond which the page warns of lost variety."""


@dataclass(frozen=True)
class Fact:
    """One figure of the strip under the headline: its name, the figure, and a remark."""

    name: str
    figure: str
    remark: str


@dataclass(frozen=True)
class Findings:
    """Headline, the sentences under it, a warning (or empty), and the strip of figures."""

    headline: str
    sentences: tuple[str, ...]
    warning: str
    facts: tuple[Fact, ...]


def equivalent_steps(curve: Mapping[int, Quality], gen_ppl: float, start: int) -> float:
    """Number of steps at which a curve reaches `gen_ppl`, walking away from `start`.

    Interpolates log perplexity linearly in log steps. A curve that never gets there gives inf
    (it stays worse however many steps) or 0.0 (it is still better with the fewest steps).
    The walk goes towards more steps if `gen_ppl` is better than the curve's own value at
    `start`, and the first crossing counts, so a noisy tail of the curve does not matter.
    """
    better = gen_ppl < curve[start].gen_ppl
    steps = sorted(curve)
    at = steps.index(start)
    walk = steps[at:] if better else steps[at::-1]
    for here, there in itertools.pairwise(walk):
        a, b = math.log(curve[here].gen_ppl), math.log(curve[there].gen_ppl)
        target = math.log(gen_ppl)
        if min(a, b) <= target <= max(a, b) and a != b:
            share = (target - a) / (b - a)
            return math.exp(math.log(here) + share * (math.log(there) - math.log(here)))
    if gen_ppl == curve[start].gen_ppl:
        return float(start)
    return math.inf if better else 0.0


def focus_steps(run: Run) -> int | None:
    """Steps of the headline: FOCUS_STEPS or the nearest (by ratio) that both sides have."""
    if not run.rounds:
        return None
    shared = sorted(set(run.teacher) & set(run.rounds[-1].steps))
    if not shared:
        return None
    return min(shared, key=lambda steps: abs(math.log(steps / FOCUS_STEPS)))


def find(run: Run) -> Findings:
    """Computes the findings of a run, whatever stage it has reached."""
    steps = focus_steps(run)
    if steps is None:
        return _without_student(run)
    last = run.rounds[-1]
    teacher, student = run.teacher[steps], last.steps[steps]
    headline, sentences = _comparison(run, last, steps)
    warning = _lost_variety(run, teacher, student)
    if warning:
        headline += ", with less variety"
    return Findings(
        headline=headline,
        sentences=(*sentences, *_context(run, student, bool(warning))),
        warning=warning,
        facts=_facts(run, last, steps),
    )


def _without_student(run: Run) -> Findings:
    if run.rounds and any(r.steps for r in run.rounds):
        headline = "Teacher and student were not measured at the same numbers of steps"
        sentence = "Their curves stand below, but there is no pair to compare."
    elif run.teacher:
        headline = "A teacher, and no student yet"
        sentence = "The teacher has been measured; no round of distillation has been evaluated."
    elif run.curves:
        headline = "Trained, not yet measured"
        sentence = "The training curves stand below; the evaluate stage has not run."
    else:
        headline = "This run has only begun"
        sentence = "There are settings, but nothing trained or measured yet."
    return Findings(headline, (sentence,), "", ())


def _comparison(run: Run, last: Round, steps: int) -> tuple[str, list[str]]:
    """Headline, and sentences with the numbers behind it."""
    teacher, student = run.teacher[steps], last.steps[steps]
    pair, ratio = last.paired.get(steps), _log_ratio(run, last, steps)
    equal = _equivalent(run, ratio, steps)
    change = percent(abs(math.expm1(ratio)))
    sentences = [
        f"At {_count(steps)} the judge gives the student’s texts a perplexity of "
        f"{number(student.gen_ppl)} and the teacher’s {number(teacher.gen_ppl)}: "
        f"{change} {'lower' if ratio < 0 else 'higher'}{_interval(run, pair)}."
    ]
    if pair and pair.low <= 0 <= pair.high:
        sentences.append("That interval includes no change at all.")
        return f"At {_count(steps)} the student cannot be told from its teacher", sentences
    if 0 < equal < math.inf:
        sentences.append(_equivalence(run, last, steps, equal))
    if ratio >= 0:
        return f"At {_count(steps)} the student writes {change} worse than its teacher", sentences
    if math.isinf(equal) and steps < max(run.teacher):
        best = max(run.teacher)
        return f"The student at {_count(steps)} writes better than its teacher at {best}", sentences
    if math.isfinite(equal) and round(equal) > steps:
        as_well = f"The student at {_count(steps)} writes as well as its teacher at {round(equal)}"
        return as_well, sentences
    return f"At {_count(steps)} the student writes {change} better than its teacher", sentences


def _interval(run: Run, pair: Paired | None) -> str:
    if pair is None:
        return ", without a paired interval, so chance is not ruled out"
    texts = f"{count(run.num_texts)} texts" if run.num_texts else "texts"
    low, high = _bounds(pair)
    return f" (95\u202f% interval {low} to {high}, {texts} paired by their random keys)"


def _bounds(pair: Paired) -> tuple[str, str]:
    low, high = (percent(math.expm1(value), sign=True) for value in (pair.low, pair.high))
    return low, high


def _log_ratio(run: Run, last: Round, steps: int) -> float:
    pair = last.paired.get(steps)
    return (
        pair.log_ratio
        if pair
        else math.log(last.steps[steps].gen_ppl) - math.log(run.teacher[steps].gen_ppl)
    )


def _equivalent(run: Run, log_ratio: float, steps: int) -> float:
    return equivalent_steps(run.teacher, run.teacher[steps].gen_ppl * math.exp(log_ratio), steps)


def _equivalent_interval(run: Run, pair: Paired | None, steps: int) -> str:
    if pair is None:
        return ""
    bounds = [_equivalent(run, value, steps) for value in (pair.high, pair.low)]
    if not all(0 < bound < math.inf for bound in bounds):
        return ""
    return f"{_steps_number(bounds[0])} to {_steps_number(bounds[1])}"


def _equivalence(run: Run, last: Round, steps: int, equal: float) -> str:
    interval = _equivalent_interval(run, last.paired.get(steps), steps)
    return (
        f"That is what the teacher reaches at {_steps_number(equal)} steps"
        f"{f' ({interval})' if interval else ''}."
    )


def _context(run: Run, student: Quality, warned: bool) -> list[str]:
    """Entropy (unless the warning already speaks of it), baseline, and real text."""
    sentences = []
    if student.entropy is not None and run.data_entropy and not warned:
        away = percent(student.entropy / run.data_entropy - 1, sign=True)
        sentences.append(
            f"The entropy of its texts is {number(student.entropy)} nats against "
            f"{number(run.data_entropy)} in the data ({away})."
        )
    if run.autoregressive:
        calls = run.autoregressive.nfe or run.length
        with_calls = f" with {count(calls)} network calls" if calls else ""
        real = f"; real text scores {number(run.data.gen_ppl)}" if run.data else ""
        sentences.append(
            f"The causal baseline reaches {number(run.autoregressive.gen_ppl)}{with_calls}{real}."
        )
    return sentences


def _lost_variety(run: Run, teacher: Quality, student: Quality) -> str:
    """Low perplexity is easily bought with repetition; entropy below data and teacher shows it."""
    if student.entropy is None or not run.data_entropy:
        return ""
    short = 1 - student.entropy / run.data_entropy
    below_teacher = teacher.entropy is None or student.entropy < teacher.entropy
    if short <= ENTROPY_TOLERANCE or not below_teacher:
        return ""
    return (
        f"The student's entropy is {percent(short)} below that of the data, more than the "
        f"{percent(ENTROPY_TOLERANCE)} that this page lets pass: part of its lower perplexity "
        "is paid for with less varied text."
    )


def _facts(run: Run, last: Round, steps: int) -> tuple[Fact, ...]:
    teacher, student, pair = run.teacher[steps], last.steps[steps], last.paired.get(steps)
    name, value = f"perplexity at {_count(steps)}", number(student.gen_ppl)
    facts = [Fact(name, value, f"teacher {number(teacher.gen_ppl)}")]
    if pair:
        low, high = _bounds(pair)
        change = percent(math.expm1(pair.log_ratio), sign=True)
        facts.append(Fact("change, same keys", change, f"95\u202f%: {low} to {high}"))
    equal = _equivalent(run, _log_ratio(run, last, steps), steps)
    if 0 < equal < math.inf:
        interval = _equivalent_interval(run, pair, steps)
        between = f" ({interval})" if interval else ""
        facts.append(Fact("the teacher needs", _steps_number(equal), f"steps{between}"))
    if student.entropy is not None:
        remark = f"data {number(run.data_entropy)}" if run.data_entropy else "nats"
        facts.append(Fact("entropy, nats", number(student.entropy), remark))
    if last.gain_share is not None:
        facts.append(
            Fact("gain share, last round", percent(last.gain_share), "of what is reachable")
        )
    return tuple(facts)


def _count(steps: int) -> str:
    return f"{steps} step" + ("" if steps == 1 else "s")


def _steps_number(steps: float) -> str:
    return f"{steps:.1f}" if steps < 20 else f"{steps:.0f}"
