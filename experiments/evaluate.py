"""Measures a model: how good its texts are, how well it predicts real text, and how fast it is.

  python -m experiments.evaluate --checkpoint=runs/demo --suite=generation,likelihood,latency
  python -m experiments.evaluate --checkpoint=OWNER/NAME@REVISION --judge=gpt2-large/ \\
      --held_out=text.jsonl --suite=generation,likelihood --num_prompts=1000 --output=student.json
  python -m experiments.evaluate --suite=judge --judge=gpt2/ --texts=texts.jsonl --output=out.json
  python -m experiments.evaluate --compare student.json teacher.json --output=figures/

Stop it at any moment and repeat the command: finished items are not computed again, and an item in
progress continues after its last finished batch. docs/guides/evaluate.md says what each figure is.
The suites:

SUITES
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import fields
from experiments.cli.app import check_flags, join_processes, refuse, run_app, stopwatch
from experiments.cli.compare import compare, named_files
from experiments.cli.devices import chosen_mesh
from experiments.stages.mirror import own_data
from sdtt_jax.config import choose, require
from sdtt_jax.data.corpora import find_corpus
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import FOLDER, Record, own_path
from sdtt_jax.evaluation.settings import JUDGING, PROMPTED, Settings
from sdtt_jax.evaluation.subject import OWN, Subject, load_subject
from sdtt_jax.evaluation.suites import SUITES
from sdtt_jax.evaluation.tasks import read_task
from sdtt_jax.evaluation.texts import held_out_name
from sdtt_jax.evaluation.variants import variant
from sdtt_jax.formats import text_lines
from sdtt_jax.interchange.load import load
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, is_irregular
from sdtt_jax.reporting import write_report

__doc__ = (__doc__ or "").replace(
    "SUITES",
    "\n".join(
        textwrap.fill(
            f"  {name:<12} {suite.help}", 100, subsequent_indent=" " * 15, break_on_hyphens=False
        )
        for name, suite in SUITES.items()
    ),
)

_CHECKPOINT = fields.define_checkpoint()
_SUITE = flags.DEFINE_list(
    "suite", [], f"What to measure, separated by commas: {', '.join(SUITES)}."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The JSON file of results, by default evaluations/ROUND.json in the checkpoint's run; with --compare, a "
    "folder for tables and figures.",
)
_JUDGE = flags.DEFINE_string(
    "judge",
    "own",
    "The causal model that scores texts: smollm2, a folder or repository of a GPT-2 or of the Llama family, "
    "a run's judge, own (that of the checkpoint's run) or none.",
)
_BASELINE = flags.DEFINE_string(
    "baseline",
    "own",
    "The causal model that writes texts to compare with: named as for --judge, own (the judge of "
    "the checkpoint's run) or none.",
)
_HELPER = fields.define_helper()
fields.define_given()
_COMPARE = flags.DEFINE_string(
    "compare", "", "Files of results to show side by side; more files may follow without a flag."
)
fields.define_flags(Settings)
fields.show_in_help("mesh", "distributed", "compilation_cache")


def check_suites(subject: Subject, suites: Sequence[str]) -> None:
    """Raises an error if one of the suites cannot measure the subject."""
    # The suite "schedule" runs before these, and learns what this mode uses.
    learns = "schedule" in suites and subject.settings.mode.partition(":")[0] == "learnt"
    learnt = dataclasses.replace(subject.settings, mode=Settings.mode)
    for name in suites:
        later = learns and name in ("budget", "latency")
        SUITES[name].check(dataclasses.replace(subject, settings=learnt) if later else subject)


def evaluate(subject: Subject, suites: Sequence[str], path: Path) -> None:
    """Runs suites in the order of `SUITES`, and writes their results to a file."""
    check_suites(subject, suites)
    log = stopwatch() if processes.is_first() else (lambda _: None)
    record = Record(path, subject.model.identity, log)
    if subject.settings.held_out:
        most = subject.settings.held_out_texts
        first = f", at most the first {most} sequences" if most else ""
        log(f"held-out text: {held_out_name(subject)}{first}")
    if subject.missing and any(SUITES[name].compares for name in suites):
        log(subject.missing)
    for name, suite in SUITES.items():
        if name in suites:
            asked = subject.judge if name == "judge" else subject.model
            log(f"{name}: {(asked or subject.model).facts['path']}")
            suite.run(subject, record)
    log(f"written to {record.path}")


def update_report(path: Path) -> None:
    """Rewrites a run's report, if there is one and `path` is among the files that it shows."""
    report = path.parent.parent / "report.html"
    if path.parent.name == FOLDER and processes.is_first() and report.exists():
        write_report(path.parent.parent)


# Settings that change nothing without another one, with the flags that set it.
_NEEDED = {
    **dict.fromkeys(
        ("prompt_tokens", "continuation_tokens", "continuations"),
        ("prompted", "--num_prompts or --prompts"),
    ),
    "exit_training_text": ("exit_training_steps", "--exit_training_steps"),
}
# Settings that another one replaces in a suite, and what it does there.
_REPLACED = {
    "mode": ("modes", "frontier", "compares the decoders that this names"),
    "num_texts": ("prompts", "generation", "continues the prompts of that file alone"),
}
# What a suite reads in place of a setting.
_INSTEAD = {
    ("frontier", "temperature"): "temperatures",
    ("latency", "batch_size"): "latency_batches",
}


def check_used(
    settings: Settings, suites: Sequence[str], helper: str | None = None, *, checkpoint: bool = True
) -> None:
    """Refuses flags that would change nothing; `ConfigError` names the flag and what it is for.

    A setting with its default is not refused. `checkpoint` tells whether there is one, or only a judge.
    """
    require(
        not settings.wrap or bool(settings.held_out),
        "--wrap is for the text of --held_out; a run's own sequences are as its data were prepared. Give "
        "--held_out, or leave it out.",
    )
    modes = [settings.mode] if {*suites} & {"generation", "budget", "latency"} else []
    if "frontier" in suites:
        modes += settings.modes.split() or [settings.mode]
    asked = " ".join(dict.fromkeys(modes)) or "none, as nothing is written"
    require(
        not helper or any(parse_mode(mode).decoder.helper for mode in modes),
        f"--helper has no effect: no decoder ({asked}) uses a second model; leave it out, or choose one that "
        "does, such as --mode=speculative.",
    )
    fields.require_helper(modes, helper)
    # Neighbours are stored in batches, and without a checkpoint it is the judge that is measured.
    always = {"batch_size": bool(settings.neighbours), "judge_compute_dtype": not checkpoint}
    for field in dataclasses.fields(Settings):
        name = field.name
        if getattr(settings, name) == field.default or always.get(name):
            continue
        # The suites to which the setting makes a difference.
        users: Sequence[str] = field.metadata["suites"] or tuple(SUITES)
        by, suite, what = _REPLACED.get(name, ("", "", ""))
        replaced = bool(by and getattr(settings, by))
        if replaced:
            users = [user for user in users if user != suite]
        used = bool({*users} & {*suites})
        require(
            used or not replaced or suite not in suites,
            f"With --{by}, --suite={suite} {what}, so --{name} would change nothing; leave it out.",
        )
        named = " or ".join(filter(None, (", ".join(users[:-1]), users[-1])))
        instead = [_INSTEAD[suite, name] for suite in suites if (suite, name) in _INSTEAD]
        require(
            used,
            f"--{name} is for --suite={named}; add {'one of them' if users[1:] else 'that'}, or "
            f"{f'give --{instead[0]} in its place' if instead else 'leave it out'}.",
        )
        other, flag = _NEEDED.get(name, (name, ""))
        require(
            bool(getattr(settings, other)) or not flag,
            f"--{name} needs {flag}; add that, or leave it out.",
        )
    require(
        checkpoint or not settings.compute_dtype,
        "--compute_dtype is that of the --checkpoint, and there is none; give --judge_compute_dtype.",
    )


def check_subject(subject: Subject, suites: Sequence[str]) -> None:
    """Raises `ConfigError` for --guidance and --first_token if no suite uses them with these models.

    Guidance needs given text, which a model of instructions always has: its texts follow the token that ends
    its prompts. The first token is given to causal models only.
    """
    settings = subject.settings
    given = settings.prompted and bool({*PROMPTED} & {*suites})
    require(
        settings.guidance == 0 or given or subject.model.prompt_end is not None,
        f"--guidance needs given text: give prompts to --suite={' or '.join(PROMPTED)} (--num_prompts or "
        "--prompts), or leave it out.",
    )
    judged = bool({*JUDGING} & {*suites})
    require(
        settings.first_token == Settings.first_token or judged or subject.causal is not None,
        "--first_token is for causal models, and a denoiser's bound counts every token; name a --baseline, "
        "or leave it out.",
    )


def check_files(settings: Settings) -> None:
    """Reads what suites will read only when their turn comes, so that a wrong name is not found after hours.

    A pipe or a device is refused: nothing of it would be left to the suites.
    """
    for name in ("texts", "prompts", "task_file", "held_out", "neighbours", "exit_training_text"):
        path = getattr(settings, name)
        require(
            path in ("", OWN) or not is_irregular(path),
            f"--{name}={path} is a pipe or a device, which can be read only once; write what it "
            "holds to a file, and give that.",
        )
    for path in filter(None, (settings.texts, settings.prompts)):
        next(text_lines(path), None)
    for name in ("neighbours", "exit_training_text"):
        if (text := getattr(settings, name)) not in ("", OWN):
            find_corpus(text, f"--{name}")
    if settings.task_file:
        read_task(settings.task, settings.task_file)


def main(argv: Sequence[str]) -> None:
    """Measures, or compares, as the flags ask."""
    if _COMPARE.value:
        measuring = ["checkpoint", "suite", "judge", "baseline", "helper", *fields.given_flags()]
        measuring += [field.name for field in dataclasses.fields(Settings)]
        refuse("--compare measures nothing", *measuring)
        compare([*named_files(_COMPARE.value), *argv[1:]], _OUTPUT.value)
        return
    check_flags(argv)
    suites = [suite.strip() for suite in _SUITE.value or []]
    require(bool(suites), f"--suite is missing; choose from {', '.join(SUITES)}.")
    for suite in suites:
        choose("--suite", suite, SUITES)
    settings = fields.from_flags(Settings)
    for name, field in (("judge", "texts"), ("lambada", "task_file")):
        together = (name in suites) == bool(getattr(settings, field))
        require(together, f"--suite={name} and --{field} go together; give both or neither.")
    require(
        bool(_OUTPUT.value) or not settings.varied,
        "--output is missing: with --early_exit or --neighbours the results are not the run's; name a JSON "
        "file.",
    )
    if _CHECKPOINT.value and not any(SUITES[suite].compares for suite in suites):
        refuse("These suites compare with no other model", "judge", "baseline")
    check_used(settings, suites, _HELPER.value, checkpoint=_CHECKPOINT.value is not None)
    check_files(settings)
    join_processes()
    judge, baseline = str(_JUDGE.value), str(_BASELINE.value)
    subject = load_subject(
        settings, _CHECKPOINT.value, judge, baseline, chosen_mesh(), fields.given_flags()
    )
    check_subject(subject, suites)
    learnt_from = settings.neighbours, settings.exit_training_text if "exits" in suites else ""
    # Data in a bucket are copied, which may take long.
    data = own_data(subject.model) if OWN in learnt_from or not settings.held_out else None
    helper = load(_HELPER.value, mesh=chosen_mesh()) if _HELPER.value else None
    subject = dataclasses.replace(subject, data=data, helper=helper)

    def check(model: Any) -> None:
        """Refuses what the suites would, before neighbours are stored, which takes long."""
        check_suites(dataclasses.replace(subject, model=model), suites)

    model = variant(subject.model, settings, data, check)
    subject = dataclasses.replace(subject, model=model)
    path = as_path(_OUTPUT.value) if _OUTPUT.value else own_path(subject.model)
    if path is None:
        raise ConfigError("--output is missing; name a JSON file.")
    evaluate(subject, suites, path)
    update_report(path)


if __name__ == "__main__":
    run_app(main, resumes=True)
