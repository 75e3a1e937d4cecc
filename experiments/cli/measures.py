"""The table of `experiments.exact`: what samples are worth at each number of calls, by whom."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

COLUMNS = {
    "kl": "KL(samples ‖ chain)",
    "kl_reverse": "KL(chain ‖ samples)",
    "tv": "total variation",
    "entropy": "entropy",
}

Record = Mapping[str, Any]


def measures_table(record: Record, calls: Sequence[int]) -> Table:
    """A section for each number of calls: teacher, last rounds, distillers, floors and mixtures.

    Args:
      record: what is written to results.json.
      calls: of the sampler; what was not measured at one of them has no row there.
    """
    entropy = f"entropy per token; the chain's is {record['data_entropy']:.3f}"
    table = Table(title=f"{record['world']['name']}, nats ({entropy})")
    table.add_column("calls", justify="right")
    table.add_column("samples of")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for n in map(str, calls):
        for index, (name, measures) in enumerate(_rows(record, n)):
            values = (_shown(measures[column]) for column in COLUMNS)
            table.add_row("" if index else n, name, *values)
        table.add_section()
    return table


def _shown(value: float | None) -> str:
    return "∞" if value is None else f"{abs(value):.4f}"


def _rows(record: Record, n: str) -> Iterator[tuple[str, Record]]:
    found = {
        "teacher": record["teacher"]["steps"],
        **{
            f"SDTT {divergence}, round {len(rounds)}": rounds[-1]["steps"]
            for divergence, rounds in record["rounds"].items()
        },
        **record.get("distillers", {}),
    }
    yield from ((name, by_calls[n]) for name, by_calls in found.items() if n in by_calls)
    for mode, by_calls in record.get("decoders", {}).items():
        if n in by_calls:
            yield f"{mode} ({by_calls[n]['calls']:.2f} calls)", by_calls[n]
    for objective, measures in record.get("floor", {}).get(n, {}).items():
        yield f"floor, best {objective}", measures
    for size, by_calls in record.get("mixtures", {}).items():
        for objective, measures in by_calls.get(n, {}).items():
            yield f"mixture of {size}, best {objective}", measures
