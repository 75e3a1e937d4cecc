"""The findings of a run, in sentences computed from its numbers.

The headline compares the last student with the first teacher at few steps. It claims no more than the paired
interval allows, and says so where entropy shows that variety was lost.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from sdtt_jax.reporting.palette import count, counted, number, percent, steps_text
from sdtt_jax.reporting.record import FewCalls, Paired, Quality, RecordedRun

FOCUS_STEPS = 8  # that the headline is about, where they were measured
FOCUS_CALLS = 2  # at which the headline speaks of a noise-coupled student
# Relative distance from the data's entropy beyond which the page warns of lost variety. It is small because a
# little variety buys much perplexity: at a temperature of 0.9 the teacher of `docs/measurements/quality.md`
# (an evening) gives up 1 % of its entropy and 14 % of its perplexity.
ENTROPY_TOLERANCE = 0.02


class Highlight(NamedTuple):
    """One number of the strip under the headline: its name, the number, and a remark."""

    name: str
    number: str
    remark: str


class Findings(NamedTuple):
    """Headline, the sentences under it, a warning (or empty), and the strip of numbers."""

    headline: str
    sentences: tuple[str, ...]
    warning: str = ""
    highlights: tuple[Highlight, ...] = ()


class Comparison(NamedTuple):
    """The last student compared with the first teacher at one number of steps.

    `equal` is the number of steps at which the teacher does as well. `equal_bounds` is its interval, in
    brackets after a space, which follows from the paired one, or empty.
    """

    steps: int
    teacher: Quality
    student: Quality
    pair: Paired | None
    log_ratio: float
    equal: float
    equal_bounds: str


def equivalent_steps(curve: Mapping[int, Quality], gen_ppl: float, start: int) -> float:
    """Number of steps at which a curve reaches `gen_ppl`, walking away from `start`.

    Interpolates log perplexity linearly in log steps. A curve that never gets there gives inf (it stays worse
    however many steps) or 0.0 (it is still better with the fewest steps). The walk goes towards more steps if
    `gen_ppl` is better than the curve's own value at `start`, and the first crossing counts, so a noisy tail
    of the curve does not matter.
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


def focus_steps(run: RecordedRun) -> int | None:
    """Steps of the headline: FOCUS_STEPS or the nearest (by ratio) that both sides have."""
    if run.student is None:
        return None
    shared = sorted(set(run.teacher) & set(run.student.steps))
    if not shared:
        return None
    return min(shared, key=lambda steps: abs(math.log(steps / FOCUS_STEPS)))


def find(run: RecordedRun) -> Findings:
    """Computes the findings of a run, whatever stage it has reached."""
    steps = focus_steps(run)
    if steps is None:
        return _without_student(run)
    comparison = compare(run, steps)
    headline, sentences = _comparison(run, comparison)
    if warning := _lost_variety(run, comparison):
        headline += ", with less variety"
    sentences += _context(run, comparison.student, bool(warning))
    if few := _fewest_gained(run):
        headline += f"; at {counted(few.calls, 'call')} a noise-coupled student {_gained(run, few)}"
    return Findings(headline, tuple(sentences), warning, _highlights(run, comparison))


def compare(run: RecordedRun, steps: int) -> Comparison:
    """The last student of a run compared with its first teacher, both measured at `steps` steps."""
    teacher, last = run.teacher[steps], run.student
    assert last is not None
    student, pair = last.steps[steps], last.paired.get(steps)

    def equal(log_ratio: float) -> float:
        return equivalent_steps(run.teacher, teacher.gen_ppl * math.exp(log_ratio), steps)

    log_ratio = pair.log_ratio if pair else math.log(student.gen_ppl) - math.log(teacher.gen_ppl)
    ends = [equal(pair.high), equal(pair.low)] if pair else [0.0]
    known = all(0 < end < math.inf for end in ends)
    bounds = f" ({' to '.join(map(_steps_number, ends))})" if known else ""
    return Comparison(steps, teacher, student, pair, log_ratio, equal(log_ratio), bounds)


def _fewest_gained(run: RecordedRun) -> FewCalls | None:
    """The coupled student at the calls nearest to FOCUS_CALLS of those where it surely beats the teacher.

    Only where both have the entropy of real text.
    """
    gained = [few for few in run.few_calls if few.reached and few.paired.high < 0]
    return min(gained, key=lambda few: abs(math.log(few.calls / FOCUS_CALLS)), default=None)


def _gained(run: RecordedRun, few: FewCalls) -> str:
    """What a noise-coupled student gains, in calls of its teacher if it saves any, else in perplexity."""
    teacher = run.teacher_few_calls
    equal = equivalent_steps(teacher, few.matched.gen_ppl, few.calls)
    if saved := _saved(teacher, few.calls, equal, few.paired.high):
        return f"writes {saved[0]} its teacher at {counted(saved[1], 'call')}"
    return f"gains {percent(abs(math.expm1(few.paired.log_ratio)))}"


def _saved(
    teacher: Mapping[int, Quality], steps: int, equal: float, high: float
) -> tuple[str, int] | None:
    """How well a student writes, and at how many steps its teacher does; None if it saves no step.

    `equal` is where the teacher does as well. Beyond the teacher's whole curve, the student is compared with
    the curve's end: it is better only if that is sure from `high`, the upper end of the log ratio.
    """
    most = max(teacher)
    if math.isinf(equal) and steps < most:
        surely = teacher[steps].gen_ppl * math.exp(high) < teacher[most].gen_ppl
        return "better than" if surely else "as well as", most
    if math.isfinite(equal) and round(equal) > steps:
        return "as well as", round(equal)
    return None


def _without_student(run: RecordedRun) -> Findings:
    if any(student.steps for student in run.students):
        headline = "Teacher and student were not measured at the same numbers of steps"
        sentence = "Their curves are shown below, but there is no pair to compare."
    elif run.few_calls:
        return _few_calls_alone(run)
    elif run.teacher:
        headline = "A teacher, and no student yet"
        sentence = "The teacher has been measured; no round of distillation has been evaluated."
    elif run.curves:
        headline = "Nothing is measured yet"
        sentence = "The training so far is shown below; the evaluate stage has not finished."
    else:
        headline = "This run has only begun"
        sentence = "There are settings, but nothing trained or measured yet."
    return Findings(headline, (sentence,))


def _few_calls_alone(run: RecordedRun) -> Findings:
    """Of a run whose only student sees its noise."""
    if not any(few.reached for few in run.few_calls):
        return Findings(
            "Teacher and noise-coupled student were not compared at equal entropy",
            (
                "No temperature that was tried gives both of them the entropy of real text, so their "
                "perplexities say little.",
            ),
        )
    headline = "No gain of the noise-coupled student is certain"
    if few := _fewest_gained(run):
        headline = f"At {counted(few.calls, 'call')} a noise-coupled student {_gained(run, few)}"
    return Findings(headline, ("Teacher and student are compared at the entropy of real text.",))


def _comparison(run: RecordedRun, c: Comparison) -> tuple[str, list[str]]:
    """Headline, and sentences with its numbers."""
    here, change = steps_text(c.steps), percent(abs(math.expm1(c.log_ratio)))
    texts = f"{count(run.num_texts)} texts" if run.num_texts else "texts"
    paired = (
        "1 text paired by its random key"
        if run.num_texts == 1
        else f"{texts} paired by their random keys"
    )
    certainty = ", without a paired interval, so chance is not ruled out"
    if c.pair:
        certainty = f" (95\u202f% interval {c.pair.change[1]}, {paired})"
    difference = f"{change} {'lower' if c.log_ratio < 0 else 'higher'}"
    sentences = [
        f"At {here} the judge gives the student’s texts a perplexity of "
        f"{number(c.student.gen_ppl)} and the teacher’s {number(c.teacher.gen_ppl)}: "
        f"{difference if c.log_ratio else 'no difference'}{certainty}."
    ]
    if c.pair is None:
        return f"At {here} no interval tells the student from its teacher", sentences
    if not c.pair.is_sure:
        sentences.append("That interval includes no change at all.")
        return f"At {here} the student cannot be told apart from its teacher", sentences
    if 0 < c.equal < math.inf:
        equal = f"{_steps_number(c.equal)} steps{c.equal_bounds}"
        sentences.append(f"That is what the teacher reaches at {equal}.")
    if c.log_ratio >= 0:
        return f"At {here} the student writes {change} worse than its teacher", sentences
    if saved := _saved(run.teacher, c.steps, c.equal, c.pair.high):
        return f"The student at {here} writes {saved[0]} its teacher at {saved[1]}", sentences
    return f"At {here} the student writes {change} better than its teacher", sentences


def _context(run: RecordedRun, student: Quality, warned: bool) -> list[str]:
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


def _lost_variety(run: RecordedRun, c: Comparison) -> str:
    """The warning that repetition bought low perplexity, if entropy is below data and teacher; or empty."""
    entropy, of_teacher = c.student.entropy, c.teacher.entropy
    if entropy is None or not run.data_entropy:
        return ""
    short = 1 - entropy / run.data_entropy
    if short <= ENTROPY_TOLERANCE or (of_teacher is not None and entropy >= of_teacher):
        return ""
    return (
        f"The student's entropy is {percent(short)} below that of the data, more than the "
        f"{percent(ENTROPY_TOLERANCE)} that this page allows: part of its lower perplexity is paid for with "
        "less varied text."
    )


def _highlights(run: RecordedRun, c: Comparison) -> tuple[Highlight, ...]:
    teacher = f"teacher {number(c.teacher.gen_ppl)}"
    share = run.student.gain_share if run.student else None
    chosen = [Highlight(f"perplexity at {steps_text(c.steps)}", number(c.student.gen_ppl), teacher)]
    if c.pair:
        change, interval = c.pair.change
        chosen.append(Highlight("change, same keys", change, f"95\u202f%: {interval}"))
    # Where the two cannot be told apart, a number without its bounds would say that they can.
    told_apart = c.pair is not None and c.pair.is_sure
    if 0 < c.equal < math.inf and (told_apart or c.equal_bounds):
        remark = f"steps{c.equal_bounds}"
        chosen.append(Highlight("the teacher needs", _steps_number(c.equal), remark))
    if c.student.entropy is not None:
        remark = f"data {number(run.data_entropy)}" if run.data_entropy else "nats"
        chosen.append(Highlight("entropy, nats", number(c.student.entropy), remark))
    if few := _fewest_gained(run):
        name = f"noise-coupled, {counted(few.calls, 'call')}"
        chosen.append(Highlight(name, number(few.matched.gen_ppl), few.change))
    if share is not None:
        chosen.append(Highlight("gain share, last round", percent(share), "of what is reachable"))
    return tuple(chosen)


def _steps_number(steps: float) -> str:
    return f"{steps:.1f}" if steps < 20 else f"{steps:.0f}"
