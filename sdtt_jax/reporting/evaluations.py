"""What `experiments.evaluate` measured, read back: rows of tables, and quality against latency."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdtt_jax.errors import DataError
from sdtt_jax.paths import as_path
from sdtt_jax.reporting.palette import number

FORMAT = "sdtt_jax evaluation 1"
EVALUATIONS = "evaluations"
"""The folder in a run's directory whose JSON files its report shows."""

Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One file of results.

    Attributes:
      name: of the file.
      model: what identifies the model.
      environment: versions and devices.
      items: results by name.
    """

    name: str
    model: Item
    environment: Item
    items: Mapping[str, Item]

    def under(self, prefix: str) -> dict[str, Item]:
        """Items whose names begin with `prefix/`, by the rest of their names, in order."""
        head = prefix + "/"
        found = {k.removeprefix(head): v for k, v in self.items.items() if k.startswith(head)}
        return dict(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """A model at one setting: how long a batch takes, and what it is worth.

    Attributes:
      model: its name.
      num_steps: of the sampler; 0 for a causal model.
      causal: whether it writes token by token.
      seconds: per batch, median.
      gen_ppl, entropy: of its unconditional texts.
      low, high: 95 % interval of `gen_ppl`.
    """

    model: str
    num_steps: int
    causal: bool
    seconds: float
    gen_ppl: float
    low: float
    high: float
    entropy: float


def read_evaluation(path: Path | str) -> Evaluation:
    """Reads a file that `experiments.evaluate` wrote.

    Raises:
      DataError: it cannot be read, or is something else.
    """
    path = as_path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no result of experiments.evaluate.")
    items = {name: item["result"] for name, item in content["items"].items()}
    return Evaluation(path.stem, content["model"], content.get("environment") or {}, items)


def read_evaluations(workdir: Path | str) -> list[Evaluation]:
    """Those in a run's directory, by name.

    Raises:
      DataError: see `read_evaluation`.
    """
    return [read_evaluation(p) for p in sorted((as_path(workdir) / EVALUATIONS).glob("*.json"))]


def tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Every table that has a row."""
    found = [
        _generation(evaluations, "unconditional"),
        _generation(evaluations, "prompted"),
        _judged(evaluations),
        _likelihood(evaluations),
        _clozes(evaluations),
        _latency(evaluations),
    ]
    return [table for table in found if table.rows]


def race(evaluations: Iterable[Evaluation], batch: int) -> list[Point]:
    """Everything whose texts were judged and whose speed was measured at a batch size.

    A causal model that is judged is timed as itself where its size differs from the denoiser's. The one of a
    run stands in the results of each of its rounds, and counts once.
    """
    points = []
    causal_seen = set()
    for evaluation in evaluations:
        quality = evaluation.under("generation/unconditional")
        speed = evaluation.under("latency")
        for name, item in quality.items():
            causal = item["kind"] == "autoregressive"
            timed = speed.get(f"{name}_batch_{batch:03d}")
            if causal:
                timed = speed.get(f"baseline_batch_{batch:03d}", timed)
            if timed is None or item.get("gen_ppl") is None:
                continue
            model = "autoregressive" if causal else evaluation.name
            if causal and item["gen_ppl"] in causal_seen:
                continue
            causal_seen |= {item["gen_ppl"]} if causal else set()
            points.append(
                Point(
                    model=model,
                    num_steps=0 if causal else item["num_steps"],
                    causal=causal,
                    seconds=timed["seconds"],
                    gen_ppl=item["gen_ppl"],
                    low=item["gen_ppl_low"],
                    high=item["gen_ppl_high"],
                    entropy=item["entropy"],
                )
            )
    return points


def race_batches(evaluations: Iterable[Evaluation]) -> list[int]:
    """Batch sizes that were timed."""
    return sorted({item["batch"] for e in evaluations for item in e.under("latency").values()})


def _generation(evaluations: Sequence[Evaluation], setup: str) -> Table:
    columns = (
        "model",
        "texts",
        "calls",
        "perplexity",
        "of the median text",
        "entropy",
        "distinct-2",
        "self-BLEU",
        "repeated 4-grams",
        "MAUVE",
    )
    rows = [
        (
            evaluation.name,
            _who(item),
            number(item.get("nfe")),
            _interval(item, "gen_ppl"),
            number(item.get("gen_ppl_median")),
            _interval(item, "entropy"),
            number(item.get("distinct_2")),
            number(item.get("self_bleu")),
            number(item.get("repeated_4gram_rate")),
            number(item.get("mauve")),
        )
        for evaluation in evaluations
        for item in _ordered(evaluation.under(f"generation/{setup}"))
    ]
    title = "Generated texts" if setup == "unconditional" else "Continued prompts"
    return _without_empty(Table(title, columns, tuple(rows)))


def _judged(evaluations: Sequence[Evaluation]) -> Table:
    columns = ("judge", "texts", "tokens", "perplexity", "of the median text", "entropy")
    rows = [
        (
            evaluation.name,
            f"{item['file']}",
            f"{item.get('scored_tokens', 0)}",
            _interval(item, "gen_ppl"),
            number(item.get("gen_ppl_median")),
            _interval(item, "entropy"),
        )
        for evaluation in evaluations
        for item in evaluation.under("judge").values()
    ]
    return Table("Given texts", columns, tuple(rows))


def _likelihood(evaluations: Sequence[Evaluation]) -> Table:
    columns = ("model", "estimator", "text", "perplexity", "bits per token", "error of the masks")
    rows = [
        (
            evaluation.name,
            "autoregressive, exact" if item["kind"] == "autoregressive" else item["estimator"],
            f"{item['num_texts']} × {item['length']}, {item['source']}",
            ("" if item["kind"] == "autoregressive" else "≤ ") + _interval(item, "perplexity"),
            number(item["bits_per_token"], 4),
            number(item.get("masking_error")),
        )
        for evaluation in evaluations
        for item in evaluation.under("likelihood").values()
    ]
    return Table("Likelihood of held-out text", columns, tuple(rows))


def _clozes(evaluations: Sequence[Evaluation]) -> Table:
    columns = ("model", "task", "how", "texts", "perplexity", "accuracy", "by character")
    rows = [
        (
            evaluation.name,
            item["task"],
            "autoregressive, exact" if item["kind"] == "autoregressive" else "bound",
            f"{item['num_texts']}",
            _interval(item, "perplexity"),
            _interval(item, "accuracy"),
            _interval(item, "accuracy_normalised"),
        )
        for evaluation in evaluations
        for item in evaluation.under("lambada").values()
    ]
    return _without_empty(Table("Last words and choices", columns, tuple(rows)))


def _latency(evaluations: Sequence[Evaluation]) -> Table:
    columns = (
        "model",
        "what",
        "batch",
        "seconds",
        "tokens/s",
        "ms per call",
        "calls",
        "compile s",
    )
    rows = [
        (
            evaluation.name,
            f"{item['num_steps']} steps"
            if item["kind"] == "diffusion"
            else f"causal: {item['what']}",
            f"{item['batch']}",
            number(item["seconds"]),
            number(item["tokens_per_second"]),
            number(1e3 * item["seconds_per_call"]),
            f"{item['nfe']}",
            number(item["compile_s"]),
        )
        for evaluation in evaluations
        for item in sorted(_ordered(evaluation.under("latency")), key=lambda item: item["batch"])
    ]
    return Table("Latency", columns, tuple(rows))


def _who(item: Item) -> str:
    kinds = {"autoregressive": "autoregressive", "real": "real text"}
    return kinds.get(item["kind"]) or f"{item['num_steps']} steps"


def _ordered(items: Mapping[str, Item]) -> list[Item]:
    """Steps ascending, then causal models, then real text."""
    rank = {"diffusion": 0, "autoregressive": 1, "real": 2}
    return sorted(items.values(), key=lambda i: (rank[i["kind"]], i.get("num_steps", 0)))


def _interval(item: Item, name: str) -> str:
    value = item.get(name)
    if value is None:
        return "–"
    low, high = item.get(f"{name}_low"), item.get(f"{name}_high")
    if low is None or high is None:
        return number(value)
    return f"{number(value)} ({number(low)}–{number(high)})"


def _without_empty(table: Table) -> Table:
    """Without columns in which nothing was measured."""
    kept = [i for i in range(len(table.columns)) if any(row[i] != "–" for row in table.rows)]
    return Table(
        table.title,
        tuple(table.columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in table.rows),
    )
