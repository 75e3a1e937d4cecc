"""Prepares the data of a run with many workers, and looks at prepared data.

  python -m experiments.data prepare --config=experiments/configs/owt_small.py \\
    --workdir=runs/owt --workers=16
  python -m experiments.data prepare --config=experiments/configs/owt_small.py --workdir=runs/owt \\
    --engine=beam --beam=--runner=DirectRunner --beam=--direct_num_workers=4
  python -m experiments.data inspect --workdir=runs/owt --output=data.html

`prepare` runs the data stage of experiments.run, which then finds it finished; the bytes are the
same for any number and kind of workers. If it is stopped or killed, the same command continues
where it stopped. `inspect` prints counts, what each filter removed, compression, frequent tokens
and random records, and compares the digests of the files; with --output it also writes a page
(.html) or everything that it found (.json).
"""

import dataclasses
from collections.abc import Sequence

from absl import flags
from rich.text import Text

from experiments.cli import app
from experiments.cli.overrides import define_config_file, source_of, with_corpus
from experiments.cli.tables import rich_table
from experiments.settings import check_overrides
from experiments.stages.runner import STAGES, open_run
from experiments.stages.workdir import Workdir
from sdtt_jax.config import choose, require, whole
from sdtt_jax.data import engines
from sdtt_jax.data.inspection import inspect_data, most_frequent, summary, taken_away
from sdtt_jax.data.records import read_info
from sdtt_jax.errors import DataError
from sdtt_jax.formats import write_json
from sdtt_jax.paths import as_path, is_remote, write_text

COMMANDS = ("prepare", "inspect")
ENGINES = ("local", "beam")
# Characters of a record on the terminal; the page and the JSON file have all of them.
SHOWN = 500

_CONFIG = define_config_file()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, which holds data/ and tokenizer/."
)
_CORPUS = flags.DEFINE_string("corpus", None, "Short for --config.data.corpus: a name or a path.")
_ENGINE = flags.DEFINE_enum(
    "engine", "local", ENGINES, "What prepares the data: processes of this machine, or Apache Beam."
)
_WORKERS = flags.DEFINE_integer(
    "workers", engines.cores(), "Number of processes of --engine=local."
)
_BEAM = flags.DEFINE_multi_string("beam", [], "An option for Beam, such as --runner=FlinkRunner")
_RECORDS = flags.DEFINE_integer(
    "records", 3, "Number of records of each split to show.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed for choosing the records.", lower_bound=0)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Also write what was found to this file, as a page (.html) or as JSON (.json)."
)


def main(argv: Sequence[str]) -> None:
    """Prepares or inspects data, as the command says."""
    require(len(argv) > 1, f"Say what to do: {' or '.join(COMMANDS)}; see --help.")
    choose("The command", argv[1], COMMANDS)
    if argv[1] == "prepare":
        app.check_flags([argv[0], *argv[2:]], "config", "workdir")
        app.refuse("prepare shows nothing", "records", "seed", "output")
        if _ENGINE.value == "beam":
            app.refuse("--engine=beam has workers of its own", "workers")
        else:
            app.refuse("Without --engine=beam no pipeline is started", "beam")
        _prepare()
    else:
        app.check_flags([argv[0], *argv[2:]], "workdir")
        app.refuse("inspect prepares nothing", "config", "corpus", "engine", "workers", "beam")
        _inspect()


def _prepare() -> None:
    config, source = _CONFIG.value, source_of()
    if _CORPUS.value is not None:
        source = with_corpus(source, _CORPUS.value)
        config.data.corpus = _CORPUS.value
    whole(1, **{"--workers": _WORKERS.value})
    engine = engines.beam(_BEAM.value) if _ENGINE.value == "beam" else engines.local(_WORKERS.value)
    app.join_processes()
    with open_run(config, as_path(str(_WORKDIR.value)), source) as run:
        in_bucket = _ENGINE.value == "beam"
        STAGES[0].run(dataclasses.replace(run, engine=engine, in_bucket=in_bucket))


def _inspect() -> None:
    output = app.output_file(_OUTPUT.value)
    right = output is None or output.suffix in (".html", ".json")
    require(right, f"--output={output} must end in .html or .json.")
    asked = Workdir(as_path(str(_WORKDIR.value)))
    read_info(asked.data)  # Where there are none, the error names the place that was asked for.
    workdir = asked.downloaded()
    found = inspect_data(workdir.data, workdir.tokenizer, _RECORDS.value, _SEED.value)
    console = app.wide_console()
    for title, head, rows in (
        ("Counts", ("", "train", "validation"), summary(found)),
        ("What each filter removed", ("", "rows"), taken_away(found)),
        ("The most frequent tokens", ("id", "text", "share"), most_frequent(found)),
    ):
        if rows:
            style = {"title": title, "title_justify": "left", "min_width": len(title)}
            console.print(rich_table(head, rows, right={*head} - {"", "text"}, **style))
    for name, split in found["splits"].items():
        for text in split["texts"]:
            shown = text[:SHOWN] + " …" * (len(text) > SHOWN)
            console.print(Text.assemble((f"{name}:", "bold"), " ", shown), soft_wrap=True)
    print(f"digests of the shards: {found['digests']}")
    if output is not None and output.suffix == ".json":
        write_json(output, found)
    elif output is not None:
        from sdtt_jax.reporting.data_page import render_data

        write_text(output, render_data(found, str(_WORKDIR.value)))
    if found["digests"].startswith(str(workdir.data)):
        remedy = "Restore the file, or prepare the data again."
        if is_remote(asked.root):
            remedy = f"If {asked.data} is whole, remove the copy {workdir.data}; it is made again."
        raise DataError(f"{found['digests']} {remedy}")


if __name__ == "__main__":
    app.run_app(main, check_overrides, resumes=True)
