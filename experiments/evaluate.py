"""Measures a model: what it writes, what it makes of real text, and how fast it is.

  python -m experiments.evaluate --checkpoint=runs/demo --suite=generation,likelihood,latency
  python -m experiments.evaluate --checkpoint=OWNER/NAME@REVISION --judge=gpt2-large/ --held_out=text.jsonl \
      --suite=generation,likelihood --num_prompts=1000 --output=student.json
  python -m experiments.evaluate --suite=judge --judge=gpt2/ --texts=texts.jsonl --output=judged.json
  python -m experiments.evaluate --compare student.json teacher.json --output=figures/

Stop it at any moment and repeat the command: finished items are not computed again, and one in progress goes
on after its last batch. docs/guides/evaluate.md says what each figure is.

  generation   generative perplexity with entropy, self-BLEU, distinct n-grams, repetition, MAUVE, calls
  likelihood   bounds on the perplexity of held-out text by several estimators; the causal model's exact value
  latency      seconds and tokens per second against a causal model of the same size with a key-value cache
  lambada      last words of texts, or multiple choice (--task, --task_file): perplexity and accuracy
  judge        any texts under the judge (--texts)
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.cli.app import join_processes, run_app, stopwatch
from experiments.cli.devices import chosen_mesh
from experiments.evaluating.cloze import lambada
from experiments.evaluating.compare import compare
from experiments.evaluating.generation import generation
from experiments.evaluating.judging import judge_file
from experiments.evaluating.latency import latency
from experiments.evaluating.likelihood import likelihood
from experiments.evaluating.output import Output
from experiments.evaluating.replaying import replay
from experiments.evaluating.settings import SUITES, Settings
from experiments.evaluating.subject import load_subject, own_output, update_report
from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.tasks import TASKS
from sdtt_jax.parallel import processes

_DEFAULTS = Settings()

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run, a round, a teacher, a judge or a final folder (local or gs://); a .safetensors file or its "
    "folder; or a repository of the hub, OWNER/NAME[@REVISION].",
)
_SUITE = flags.DEFINE_list("suite", [], f"What to measure, of: {', '.join(SUITES)}.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The JSON file of results, by default evaluations/ROUND.json in the checkpoint's run; with --compare, a "
    "folder for tables and figures.",
)
_JUDGE = flags.DEFINE_string(
    "judge",
    "own",
    "The causal model that scores texts: a GPT-2 folder or repository, or a run's judge; own is that of the "
    "checkpoint's run; none.",
)
_BASELINE = flags.DEFINE_string(
    "baseline", "own", "The causal model that writes texts beside the checkpoint; likewise."
)
_COMPARE = flags.DEFINE_list(
    "compare", [], "Results to lay side by side; more files may follow without a flag."
)
_TEXTS = flags.DEFINE_string("texts", None, "JSON lines for --suite=judge.")
_TASK = flags.DEFINE_enum("task", "lambada", list(TASKS), "Of --suite=lambada.")
_TASK_FILE = flags.DEFINE_string(
    "task_file", None, "The task's JSONL file, with the fields of the hub's data set."
)
_MASKINGS = flags.DEFINE_string(
    "maskings",
    None,
    "With --suite=lambada, instead of a task: an .npz file with one text's ids and given maskings of its "
    "suffix (prefix, suffix, xt, t), to compare with another implementation.",
)
_ARRAYS = flags.DEFINE_string(
    "arrays", None, "With --suite=judge, also write -log p of every token and logits, as .npz."
)

_SINGLE = {
    "seed": "Equal seeds give equal texts.",
    "batch_size": "Texts at once; part of what determines the draws.",
    "precision": "Of the activations, float32 or bfloat16; by default what the model was trained with.",
    "judge_precision": "Likewise, of the judge.",
    "num_texts": "Texts for each number of steps.",
    "length": "Tokens of a text; 0 is the model's own length.",
    "mode": "Of the sampler: grid or first-hitting.",
    "time_grid": "Of the sampler: uniform or cosine.",
    "temperature": "Divides the logits; 0 is greedy.",
    "top_k": "Top-k filtering; 0 is off.",
    "top_p": "Nucleus filtering; 1 is off.",
    "prompts": "JSON lines whose beginnings are continued; by default those of held-out text are.",
    "num_prompts": "Prompts to continue; 0 is all of --prompts, or none.",
    "prompt_tokens": "Tokens of a prompt.",
    "continuation_tokens": "Tokens written after a prompt.",
    "continuations": "Continuations of each prompt.",
    "held_out": "Real text: a file or folder, or a named set (wikitext2, ptb, …); by default the run's own.",
    "held_out_folder": "Holds the files of a named set; by default the hub's copy is taken.",
    "wrap": "Sequences of a file are [BOS] text [EOS], as published models were trained.",
    "held_out_texts": "Sequences of it at most; 0 is all.",
    "num_maskings": "Maskings of each text for each estimator of the bound.",
    "first_token": "scored after BOS, or given, as the reference code has it.",
    "ends": "keep scores texts whole, cut ends them at their first EOS.",
    "repeats": "Of each timing, after one to warm up.",
    "latency_budget_s": "Seconds of repetitions after which a timing is content with those it has.",
}
_LISTS = {
    "num_steps": "Sampling steps, with commas.",
    "estimators": "Of the likelihood bound: independent, antithetic, importance, low-variance.",
    "latency_steps": "Sampling steps that are timed.",
    "latency_batches": "Batch sizes that are timed.",
}
_DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
for _name, _help in _SINGLE.items():
    _default: Any = getattr(_DEFAULTS, _name)
    _DEFINE[type(_default)](_name, _default, _help)
for _name, _help in _LISTS.items():
    flags.DEFINE_list(_name, [str(value) for value in getattr(_DEFAULTS, _name)], _help)
# Defined elsewhere; --help shows a module's own flags and those that it declares.
for _name in ("mesh", "distributed", "compilation_cache"):
    flags.declare_key_flag(_name)


def settings() -> Settings:
    """What the flags say.

    Raises:
      ConfigError: naming the flag.
    """
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in _SINGLE}
    for name in _LISTS:
        texts = [text.strip() for text in flags.FLAGS[name].value or []]
        if name == "estimators":
            values[name] = tuple(texts)
            continue
        for text in texts:
            require(text.isdecimal(), f"--{name}: {text!r} is no whole number.")
        values[name] = tuple(sorted({int(text) for text in texts}))
    return Settings(**values)


def main(argv: Sequence[str]) -> None:
    """Measures, or compares, as the flags ask."""
    if _COMPARE.value:
        compare([*(_COMPARE.value or []), *argv[1:]], _OUTPUT.value)
        return
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    suites = [suite.strip() for suite in _SUITE.value or []]
    require(bool(suites), f"--suite is missing; choose from {', '.join(SUITES)}.")
    for suite in suites:
        require(suite in SUITES, f"--suite={suite} is no suite; choose from {', '.join(SUITES)}.")
    require(
        ("judge" in suites) == (_TEXTS.value is not None), "--suite=judge and --texts go together."
    )
    given = [name for name in (_TASK_FILE.value, _MASKINGS.value) if name is not None]
    require(
        len(given) == ("lambada" in suites),
        "--suite=lambada goes together with --task_file, or else with --maskings.",
    )
    wanted = settings()
    join_processes()
    subject = load_subject(
        wanted, _CHECKPOINT.value, str(_JUDGE.value), str(_BASELINE.value), chosen_mesh()
    )
    output = Output(_OUTPUT.value or own_output(subject), subject.identity)
    say = _say()
    for suite in (suite for suite in SUITES if suite in suites):
        say(f"{suite}: {subject.identity['path']}")
        if suite == "judge":
            judge_file(subject, output, str(_TEXTS.value), _ARRAYS.value, say)
        elif suite == "lambada" and _MASKINGS.value is not None:
            replay(subject, output, _MASKINGS.value, say)
        elif suite == "lambada":
            lambada(subject, output, str(_TASK.value), str(_TASK_FILE.value), say)
        else:
            {"generation": generation, "likelihood": likelihood, "latency": latency}[suite](
                subject, output, say
            )
    say(f"written to {output.path}")
    update_report(output.path)


def _say() -> Any:
    tell = stopwatch()
    return lambda line: tell(line) if processes.is_first() else None


if __name__ == "__main__":
    run_app(main)
