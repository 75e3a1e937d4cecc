"""Reads the results of `experiments.evaluate`, for tables and for quality against latency."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdtt_jax.config import to_mapping
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import DataError
from sdtt_jax.evaluation import suites
from sdtt_jax.evaluation.record import EARLIER, FOLDER, FORMAT, damage, own_name, place_in_run
from sdtt_jax.formats import read_json
from sdtt_jax.paths import absolute, as_path
from sdtt_jax.reporting.palette import number, steps_text

NOTHING = number(None)
ANEW = "remove it and evaluate the model again (in a run, by repeating the same command)"
AGAIN = "remove it and run the same command again"
# Fields of results.json for the distillers whose students see noise, the last distiller first.
COUPLED_STUDENTS = ("coupled_idlm", "coupled")
# In what texts and their timing must agree; in the case of a causal model.
WAYS = ("length", "sampler", "compute_dtype", "helper")
CAUSAL_WAYS = ("length", "compute_dtype")
Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Judging:
    """Which model scored an item's texts, and how: only perplexities of equal judging can be compared."""

    # Of the judge, which may have been moved or copied.
    path: str = dataclasses.field(compare=False)
    digest: str
    settings: tuple[str, ...]  # compute dtype, kind of sequences, first token, ends

    def __str__(self) -> str:
        return f"{self.path} ({', '.join((self.digest[:8], *self.settings))})"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One file of results."""

    name: str  # of the file
    items: Mapping[str, Item]  # results by name
    # Of the items that were judged, by name.
    judgings: Mapping[str, Judging] = dataclasses.field(default_factory=dict)
    # What texts were written or timed with, by item: those of `WAYS` that the file has.
    writing: Mapping[str, Item] = dataclasses.field(default_factory=dict)
    model: Item = dataclasses.field(default_factory=dict)  # what identifies it

    def under(self, prefix: str) -> dict[str, Item]:
        """Items whose names begin with `prefix/`, by the rest of their names, in order."""
        head = prefix + "/"
        below = {k.removeprefix(head): v for k, v in self.items.items() if k.startswith(head)}
        return dict(sorted(below.items()))


class TextTable(NamedTuple):
    """A title, the heads of the columns, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # below it: the judge, or the judges


@dataclasses.dataclass(frozen=True)
class Point:
    """A model at one setting: its latency, and the quality of its unconditional texts."""

    model: str  # its name
    num_steps: int  # of the sampler; 0 for a causal model
    causal: bool  # whether it writes token by token
    seconds: float  # per batch, median
    gen_ppl: float
    low: float  # with `high`, the 95 % interval of `gen_ppl`
    high: float
    entropy: float


def read_evaluation(path: Path | str) -> Evaluation:
    """Reads a file that `experiments.evaluate` wrote.

    Raises:
      DataError: it cannot be read, or is something else.
    """
    content = read_json(path, remedy=ANEW)
    if content.get("format") not in (FORMAT, EARLIER):
        raise DataError(
            f"{path} is not a result of experiments.evaluate; give a file that its --output wrote."
        )
    if fault := damage(content):
        raise DataError(f"{path} is damaged ({fault}); {ANEW}.")
    items = {name: item["result"] for name, item in content["items"].items()}
    found = {name: _judging(name, content["items"]) for name in items}
    judgings = {name: judging for name, judging in found.items() if judging is not None}
    writing = {name: _writing(item["inputs"]) for name, item in content["items"].items()}
    return Evaluation(as_path(path).stem, items, judgings, writing, content["model"])


def read_evaluations(workdir: Path | str) -> list[Evaluation]:
    """The evaluations in a run's directory: teacher, rounds, others, and last the causal judge.

    Those of models that the run had, and that its results do not speak of any more, are left out.
    """
    root = as_path(workdir)
    found = [read_evaluation(path) for path in (root / FOLDER).glob("*.json")]
    results = root / "results.json"
    digests = _digests(read_json(results, remedy=AGAIN)) if results.exists() else {}
    if digests:  # earlier versions did not store which models the run has
        found = [e for e in found if not _is_gone(e, root, digests)]
    return sorted(found, key=lambda e: (e.name == "judge", e.name != "teacher", e.name))


def _digests(results: Item) -> dict[str, str]:
    """The digests of a run's models by folder, from its results; "" for those that it did not measure."""
    delivered = results.get("delivered") or {}
    measured = {"teacher": results.get("teacher"), "judge": results.get("baseline_ar")}
    measured |= {f"rounds/{r['round']:02d}": r for r in results.get("rounds") or ()}
    measured |= {f"{name}/01": r for name, r in (results.get("others") or {}).items()}
    last = {name: results.get(name) for name in COUPLED_STUDENTS}
    measured |= {f"{name}/{r.get('round', 0):02d}": r for name, r in last.items() if r}
    return {place: (measured.get(place) or {}).get("params_digest", "") for place in delivered}


def _is_gone(evaluation: Evaluation, root: Path, digests: Mapping[str, str]) -> bool:
    """Whether a file is of a model of this run, by its name or the model's path, that it has no more."""
    facts = evaluation.model.get("facts") or {}
    if "stage" not in facts or "variant" in facts:
        return False
    place = place_in_run(facts)
    here = absolute(evaluation.model["path"]) == absolute(root / place / "final")
    ours = here or evaluation.name == own_name(place)
    return ours and digests.get(place) not in ("", evaluation.model["digest"])


def tables(evaluations: Sequence[Evaluation]) -> list[TextTable]:
    """Every table of every suite that has a row; where judges differ, a column names that of each row."""
    letters = judge_letters(evaluations)
    every = [
        _table(table, evaluations, letters)
        for suite in suites.SUITES.values()
        for table in suite.tables
    ]
    return [table for table in every if table.rows]


def judge_letters(evaluations: Iterable[Evaluation]) -> dict[Judging, str]:
    """A letter, "a" first, for each way in which texts were judged; "" if there is only one."""
    ways = dict.fromkeys(way for each in evaluations for way in each.judgings.values())
    if len(ways) < 2:
        return dict.fromkeys(ways, "")
    return {way: chr(ord("a") + i) if i < 26 else str(i + 1) for i, way in enumerate(ways)}


def judged_by(evaluation: Evaluation, item: str, letters: Mapping[Judging, str]) -> str:
    """ ", judge b" for an item's label in a figure if several judges are compared, else ""."""
    judging = evaluation.judgings.get(item)
    letter = letters[judging] if judging is not None else ""
    return f", judge {letter}" if letter else ""


def race(evaluations: Iterable[Evaluation], batch: int) -> list[Point]:
    """All models whose texts were judged and whose speed was measured at a batch size.

    A denoiser's texts and timing belong together where length, sampler, compute dtype and helper agree, a
    causal model's where length and compute dtype do: a call takes it as long at any temperature.

    The causal baseline has a timing of its own only if its size differs from the denoiser's. It appears in
    the results of every round of its run, and is taken once. Where judges differ, the names of the models say
    by whom their texts were judged; where causal baselines differ, in which evaluation they stand.
    """
    evaluations = list(evaluations)
    letters = judge_letters(evaluations)
    found: dict[tuple[object, ...], tuple[Point, str]] = {}  # with the names of their evaluations
    for evaluation in evaluations:
        quality = evaluation.under("generation/unconditional")
        speed = evaluation.under("latency")
        for name, item in quality.items():
            causal = item["kind"] == "autoregressive"
            timing = f"{name}_batch_{batch:03d}"
            if causal and (other := f"baseline_batch_{batch:03d}") in speed:
                timing = other
            timed = speed.get(timing)
            if timed is None or item.get("gen_ppl") is None:
                continue
            written = evaluation.writing.get(f"generation/unconditional/{name}", {})
            ways = written, evaluation.writing.get(f"latency/{timing}", {})
            if not _agree(*ways, fields=CAUSAL_WAYS if causal else WAYS):
                continue
            by = judged_by(evaluation, f"generation/unconditional/{name}", letters)
            point = Point(
                model=("causal" if causal else evaluation.name) + by,
                num_steps=0 if causal else item["num_steps"],
                causal=causal,
                seconds=timed["seconds"],
                gen_ppl=item["gen_ppl"],
                # Over a single text there is no interval.
                low=item["gen_ppl_low"] or item["gen_ppl"],
                high=item["gen_ppl_high"] or item["gen_ppl"],
                entropy=item["entropy"],
            )
            key: tuple[object, ...] = (item["gen_ppl"],) if causal else (evaluation.name, name)
            found.setdefault(key, (point, evaluation.name))
    if sum(point.causal for point, _ in found.values()) > 1:
        for key, (point, source) in found.items():
            if point.causal:
                model = point.model.replace("causal", f"causal of {source}", 1)
                found[key] = dataclasses.replace(point, model=model), source
    return [point for point, _ in found.values()]


def race_batches(evaluations: Iterable[Evaluation]) -> list[int]:
    """Batch sizes that were timed."""
    return sorted({item["batch"] for e in evaluations for item in e.under("latency").values()})


def _judging(name: str, items: Mapping[str, Any]) -> Judging | None:
    """How an item of a file's items was judged; None if it was not."""
    if name.startswith("frontier/clean/") and "judging" not in items[name]["inputs"]:
        # It sums up others, and is of a version that did not say by whom these were judged.
        others = name.replace("clean", "matched", 1) + "/"
        name = next((other for other in items if other.startswith(others)), name)
    inputs = items[name]["inputs"]
    inputs = inputs.get("judging", inputs)
    judge = inputs.get("judge") if isinstance(inputs, Mapping) else None
    if not isinstance(judge, Mapping) or "digest" not in judge:
        return None
    settings = [str(judge[f]) for f in ("compute_dtype", "sequences") if f in judge]
    settings += [f"{f}={inputs[f]}" for f in ("first_token", "ends") if f in inputs]
    return Judging(str(judge.get("path", "")), str(judge["digest"]), tuple(settings))


def _writing(inputs: Item) -> Item:
    """The `WAYS` that an item's inputs give; those of a timing have the length one level down."""
    timing = inputs.get("timing")
    found = dict(inputs) | (dict(timing) if isinstance(timing, Mapping) else {})
    texts = found.get("texts")
    first = texts[0] if isinstance(texts, list) and texts else None
    # The model that computes: of the untrained causal models that are timed, it is the network.
    models = [each.get("model") for each in (found, first) if isinstance(each, Mapping)]
    for model in (found.get("network"), *models):
        if isinstance(model, Mapping) and "compute_dtype" in model:
            found["compute_dtype"] = model["compute_dtype"]
            break
    return {name: found[name] for name in WAYS if name in found}


def _agree(one: Item, other: Item, fields: Iterable[str]) -> bool:
    """Whether two items say the same of some fields; what an older version did not write may be anything."""
    for name in fields:
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if not _agree(a, b, a.keys() & b.keys()):
                return False
        elif a is not None and b is not None and a != b:
            return False
    return True


class _Entry(NamedTuple):
    """An item of a table, and how its texts were written and judged."""

    order: tuple[int, ...]
    source: str  # the name of its evaluation
    item: Item
    judging: Judging | None
    sampler: Item
    dtype: str


def _table(
    table: suites.ReportTable, evaluations: Sequence[Evaluation], letters: Mapping[Judging, str]
) -> TextTable:
    """One table of a suite, without columns that have no value.

    Denoisers come first, in the order of their evaluations, then causal models, then real text. Rows that are
    the same in several evaluations (a run's causal model, real text) appear once, and are of no model unless
    they differ. Where samplers or compute dtypes differ, a column says which they are.
    """
    entries = []
    for place, evaluation in enumerate(evaluations):
        for name, item in evaluation.under(table.items).items():
            judging = evaluation.judgings.get(f"{table.items}/{name}")
            writing = evaluation.writing.get(f"{table.items}/{name}", {})
            dtype = str(writing.get("compute_dtype", NOTHING))
            order, sampler = _order(item, place), _sampler(writing, item)
            entries.append(_Entry(order, evaluation.name, item, judging, sampler, dtype))
    differing = _differing([entry.sampler for entry in entries])
    several = len({entry.dtype for entry in entries} - {NOTHING}) > 1
    denoisers = {entry.source for entry in entries if not _rank(entry.item)}
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    beside: set[tuple[str, ...]] = set()  # rows of causal models measured with a denoiser
    for _, name, item, judging, sampler, dtype in sorted(entries, key=lambda entry: entry.order):
        who, *figures = (_cell(cell, item) for _, cell in table.columns)
        judge = letters[judging] if judging is not None else ""
        ways = ", ".join(f"{key}={sampler[key]}" for key in differing if key in sampler)
        cells = (who, ways or NOTHING, dtype if several else NOTHING, judge or NOTHING, *figures)
        row = found.setdefault(cells if _rank(item) else (name, *cells), (name, *cells))
        if _rank(item) and name in denoisers:
            beside.add(row)
    # How many evaluations have something else to say of real text, or of a causal model of that name.
    sources = collections.Counter(who for _, who in {row[:2] for row in beside})
    rows = [
        (NOTHING if row in beside and sources[row[1]] == 1 else row[0], *row[1:])
        for row in found.values()
    ]
    first, *others = (head for head, _ in table.columns)
    heads = ("model", first, "sampler", "dtype", "judge", *others)
    kept = [i for i in range(len(heads)) if any(row[i] != NOTHING for row in rows)]
    columns, *shown = (tuple(row[i] for i in kept) for row in (heads, *rows))
    note = _note([entry.judging for entry in entries if entry.judging is not None], letters)
    return TextTable(table.title, columns, tuple(shown), note)


def _sampler(writing: Item, item: Item) -> Item:
    """The sampler of an item's texts; empty if it has none, or its file does not say.

    Fields that are newer than the file have their defaults. A learnt schedule is named without its numbers,
    which differ at every number of steps and may be one for each token.
    """
    found = writing.get("sampler") or {}
    if not found or item.get("kind") != "diffusion":
        return found
    result = to_mapping(SamplerConfig(1)) | dict(found)
    if result["mode"].startswith("learnt"):
        result["mode"] = re.sub("(counts|temperatures)=[^,]*,?", "", result["mode"]).rstrip(":,")
    return result


def _differing(samplers: Sequence[Item]) -> list[str]:
    """The fields, but for the number of steps, in which samplers differ; one need not have every field."""
    names = dict.fromkeys(name for sampler in samplers for name in sampler if name != "num_steps")
    values = {name: {str(each[name]) for each in samplers if name in each} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _note(judgings: Iterable[Judging], letters: Mapping[Judging, str]) -> str:
    found = sorted(f"judge {letters[each]}".strip() + f": {each}" for each in set(judgings))
    warning = "Perplexities of different judges cannot be compared. " if len(found) > 1 else ""
    return warning + "; ".join(found)


def _cell(template: str, item: Item) -> str:
    def field(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        value = _who(item) if name == "who" else item.get(name)
        if value is None and form == "reached":
            return "not reached"
        if not isinstance(value, float):
            return NOTHING if value is None else str(value)
        scale = {"ms": 1000, "bits": 1 / math.log(2)}.get(form or "", 1)
        if form is not None and form.isdecimal():
            return number(value, int(form))
        text = number(scale * value)
        low, high = item.get(f"{name}_low"), item.get(f"{name}_high")
        if low is not None and high is not None:
            text += f" ({number(scale * low)}–{number(scale * high)})"
        return f"≤ {text}" if form == "bound" and item["kind"] == "diffusion" else text

    return re.sub(r"{(\w+)(?::(\w+))?}", field, template)


def _who(item: Item) -> str:
    """The model, setting or text that an item describes."""
    if "num_steps" in item:
        return steps_text(item["num_steps"])
    if item.get("kind") == "real":
        return "real text"
    if item.get("kind") == "autoregressive":
        exact = ", exact" if "perplexity" in item or "task" in item else ""
        return f"causal: {item['what']}" if "what" in item else f"causal{exact}"
    return str(item.get("estimator") or item.get("file") or "bound")


def _rank(item: Item) -> int:
    """0 for denoisers, 1 for causal models, 2 for real text."""
    return {"autoregressive": 1, "real": 2}.get(item.get("kind", ""), 0)


def _order(item: Item, place: int) -> tuple[int, ...]:
    """Sort key: denoisers, causal models, real text; for timings, model and batch size first."""
    rank, steps = _rank(item), item.get("num_steps", 0)
    if "batch" in item:
        return place, item["batch"], rank, steps
    return rank, place, steps
