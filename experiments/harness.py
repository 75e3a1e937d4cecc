"""Runs lm-evaluation-harness on a model: pip install -e '.[eval]' first.

  python -m experiments.harness --checkpoint=runs/demo --tasks=lambada_openai,arc_easy,piqa \\
      --output=x.json
  python -m experiments.harness --checkpoint=OWNER/NAME --tasks=my_task --include=folder/ \\
      --limit=100

Likelihoods of a denoiser are lower bounds (--num_maskings each, exact for a single token); those of
a causal model (GPT-2, a run's judge) are exact. Of a text that is longer than the model, a causal
model reads the harness's own windows, and a denoiser windows that each stand between BOS and EOS.
--early_exit and --neighbours are as for experiments.sample. The harness fetches its data sets from
the hub; --include names a folder with task files of your own, which may read local files.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.table import Table

from experiments.cli import fields
from experiments.cli.app import check_flags, output_file, run_app, wide_console
from experiments.cli.tables import rich_table
from experiments.stages.mirror import own_data
from sdtt_jax.config import require, whole
from sdtt_jax.errors import UserError
from sdtt_jax.evaluation.harness import Options, adapter, check_tasks, enough_examples, resamples
from sdtt_jax.evaluation.subject import OWN
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.formats import write_json
from sdtt_jax.interchange.load import load
from sdtt_jax.paths import as_path

_CHECKPOINT = fields.define_checkpoint()
_TASKS = flags.DEFINE_list("tasks", [], "Tasks of the harness, separated by commas.")
_INCLUDE = flags.DEFINE_string("include", None, "A folder with further task files.")
_LIMIT = flags.DEFINE_integer("limit", None, "Evaluate only this many items of each task.")
_NUM_FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "Solved examples before each item.")
_DTYPE = fields.define_compute_dtype()
_OUTPUT = flags.DEFINE_string("output", None, "Also write the results to this JSON file.")
fields.define_flags(Options)
fields.define_given()


def _table(results: dict[str, Any]) -> Table:
    rows = []
    for task, values in results["results"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{kind}")
                after = f"{error:.4f}" if isinstance(error, float) else ""
                rows.append((task, metric, f"{value:.4f}", after))
    columns = ("task", "metric", "value", "standard error")
    # Without any error, its column is left out.
    shown = columns if any(row[-1] for row in rows) else columns[:-1]
    return rich_table(shown, [row[: len(shown)] for row in rows], right=shown[2:])


def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags ask."""
    check_flags(argv, "checkpoint")
    require(bool(_TASKS.value), "--tasks is missing; for example --tasks=lambada_openai.")
    if _LIMIT.value is not None:
        whole(1, **{"--limit": _LIMIT.value})
    if _NUM_FEWSHOT.value is not None:
        whole(0, **{"--num_fewshot": _NUM_FEWSHOT.value})
    output = output_file(_OUTPUT.value)
    include = None if _INCLUDE.value is None else as_path(_INCLUDE.value)
    require(
        include is None or include.is_dir(),
        f"--include={include} is not a folder; name one with task files, or leave it out.",
    )
    options = fields.from_flags(Options)
    try:
        import lm_eval
        from lm_eval.api import metrics
        from lm_eval.api.model import LM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(
            "lm-evaluation-harness is not installed; pip install -e '.[eval]'."
        ) from None
    manager = TaskManager(include_path=None if include is None else str(include))
    check_tasks(_TASKS.value, manager.all_tasks)
    model = load(str(_CHECKPOINT.value), compute_dtype=_DTYPE.value, **fields.given_flags())
    data = own_data(model) if options.neighbours == OWN else None
    model = variant(model, options, data)
    with enough_examples(_NUM_FEWSHOT.value):
        results: Any = lm_eval.simple_evaluate(
            model=adapter(LM)(model, options),
            tasks=_TASKS.value,
            limit=_LIMIT.value,
            num_fewshot=_NUM_FEWSHOT.value,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=resamples(metrics),
        )
    if output is not None:
        write_json(output, results, default=str)
    wide_console().print(_table(results))


if __name__ == "__main__":
    run_app(main)
