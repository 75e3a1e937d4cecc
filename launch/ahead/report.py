"""Analyses as tables in the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.cli.tables import rich_table
from launch.ahead.analysis import Record
from sdtt_jax.formats import write_json

GB = 1e9
# Operations that each move less than this share of a program's bytes are summed in one row.
SMALL = 0.003


def publish(
    found: Iterable[Sequence[Record]],
    console: Console,
    output: Path | None,
    *,
    by_operation: bool = False,
) -> list[Record]:
    """Prints and writes what is found, program by program, so that one that fails loses none before it.

    `found` has for each program its records, the best first, which is printed. The file `output` has all
    records so far; they are also returned. `by_operation` adds the traffic of each operation, if known.
    """
    records: list[Record] = []
    for analyses in found:
        records += analyses
        show(analyses[0], console)
        if by_operation and analyses[0].get("memory_traffic_by_operation"):
            console.print(operations(analyses[0]))
        if output is not None:
            write_json(output, records)
    return records


def show(record: Record, console: Console) -> None:
    """Prints one program on one mesh: every figure, and whether it is compiled, counted or predicted."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    console.print(
        f"\n[bold]{record['program']}[/] on {record['topology']}: {record['chips']} chips, {mesh}, "
        f"{record['batch_per_chip']:g} sequences per chip"
    )
    table = rich_table(("per chip", "", "how"), (), right=("",))
    table.columns[-1].style = "dim"
    for part, size in record["state_bytes"].items():
        table.add_row(part, f"{size / GB:.3f} GB", "from the shardings")
    if "temporaries_bytes" in record:
        table.add_row(
            "activations, gradients", f"{record['temporaries_bytes'] / GB:.2f} GB", "compiled"
        )
    room = f"of {record['usable_bytes'] / GB:.2f} GB"
    fits = "[green]fits[/]" if record["fits"] else "[red]does not fit[/]"
    table.add_row("peak memory", f"{record['peak_bytes'] / GB:.2f} GB", f"compiled; {fits}, {room}")
    if "flops" in record:
        _add_costs(table, record)
    console.print(table)
    if "collectives" in record:
        console.print(_collectives(record))


def _add_costs(table: Table, record: Record) -> None:
    counts, predicted = record["flops"], record["predicted"]
    table.add_section()
    ratio = counts["counted_over_expected"]
    table.add_row(
        "FLOPs", f"{counts['counted'] / 1e12:.3f} T", f"counted; {ratio:.3f} of the analytic count"
    )
    table.add_row("of which unavoidable", f"{counts['unavoidable'] / 1e12:.3f} T", "analytic")
    traffic = record["memory_traffic_bytes"]
    if traffic is None:
        table.add_row("memory traffic", "?", "not known: compiled by XLA's CPU compiler")
    else:
        table.add_row("memory traffic", f"{traffic / GB:.1f} GB", "counted")
    table.add_section()
    for name in ("compute", "memory", "network"):
        alone = predicted[f"{name}_seconds"]
        if alone is not None:
            table.add_row(f"{name} alone", f"{alone * 1e3:.1f} ms", "predicted, at peak")
    table.add_row(
        "one run, at best",
        f"{predicted['seconds'] * 1e3:.1f} ms",
        f"predicted, bound by {predicted['bound_by']}",
    )
    table.add_row(
        "without any overlap", f"{predicted['seconds_without_overlap'] * 1e3:.1f} ms", "predicted"
    )
    table.add_row("share of peak FLOP/s", f"{predicted['share_of_peak']:.0%}", "predicted")
    table.add_row("tokens/s, all chips", f"{predicted['tokens_per_second']:,.0f}", "predicted")
    table.add_section()
    table.add_row("compilation", f"{record['compile_seconds']:.0f} s", "measured here")


def _collectives(record: Record) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            entry["kind"],
            ", ".join(entry["axes"]),
            f"{entry['devices']}",
            f"{entry['calls']:,.0f}",
            f"{entry['bytes'] / GB:.3f} GB",
            f"{entry['sent_bytes'] / GB:.3f} GB",
            f"{entry['seconds'] * 1e3:.2f} ms",
        )
        for entry in record["collectives"]
    ]
    numbers = ("devices", "calls", "data", "sent", "at peak")
    return rich_table(
        ("kind", "over", *numbers),
        rows or [("none", *[""] * 6)],
        right=numbers,
        title="collectives, per chip and run (counted)",
        title_justify="left",
    )


def operations(record: Record) -> Table:
    """Memory traffic by source operation, the largest first, of a program whose traffic is known."""
    traffic = record["memory_traffic_by_operation"]
    total = sum(traffic.values())
    large = {name: size for name, size in traffic.items() if size >= SMALL * total}
    sizes = sorted(large.items(), key=lambda item: -item[1])
    sizes.append((f"{len(traffic) - len(large)} others", total - sum(large.values())))
    return rich_table(
        ("operation", "GB", "share"),
        [(name, f"{size / GB:.2f}", f"{size / total:.1%}") for name, size in sizes],
        right=("GB", "share"),
        title="memory traffic by operation, per chip (counted)",
        title_justify="left",
    )


def summary(records: Sequence[Record]) -> Table:
    """A line per program and mesh."""
    numbers = ("per chip", "peak GB", "ms (predicted)", "tokens/s", "share")
    return rich_table(
        ("program", "slice", "mesh", *numbers),
        map(_summed_up, records),
        right=numbers,
        title="summary",
        title_justify="left",
    )


def _summed_up(record: Record) -> list[str]:
    predicted = record.get("predicted")
    return [
        record["program"],
        record["topology"],
        " × ".join(str(size) for size in record["mesh"].values()),
        f"{record['batch_per_chip']:g}",
        f"{record['peak_bytes'] / GB:.1f}" + ("" if record["fits"] else " [red]✗[/]"),
        f"{predicted['seconds'] * 1e3:.0f}" if predicted else "",
        f"{predicted['tokens_per_second']:,.0f}" if predicted else "",
        f"{predicted['share_of_peak']:.0%}" if predicted else "",
    ]
