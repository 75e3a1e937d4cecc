"""The suite "lambada": the ends of texts by likelihood and by the most probable tokens; multiple choice."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluating.judging import interval
from experiments.evaluating.output import Output, digest_of
from experiments.evaluating.subject import Subject
from sdtt_jax.data import Tokenizer
from sdtt_jax.evaluation.bootstrap import bootstrap, exp_mean, mean
from sdtt_jax.evaluation.cloze import causal_scores, choice_hits, greedy_hits, suffix_bounds
from sdtt_jax.evaluation.continuations import (
    Choice,
    Continuation,
    causal_layout,
    denoiser_layout,
    encode,
)
from sdtt_jax.evaluation.tasks import read_task
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.parallel import processes
from sdtt_jax.progress import make_progress

Json = dict[str, Any]
Say = Callable[[str], None]


def lambada(subject: Subject, output: Output, task: str, path: str, say: Say) -> None:
    """Runs the suite: LAMBADA's perplexity and accuracy, or the accuracy of a multiple-choice set.

    Args:
      subject: model and baseline.
      output: gets the items.
      task: one of `sdtt_jax.evaluation.tasks.TASKS`.
      path: the task's JSONL file.
      say: hears the figures.
    """
    items = Task(task, path, read_task(task, path))
    model, baseline = subject.model, subject.baseline
    if isinstance(model, CausalModel):
        _causal(subject, model, subject.identity, output, items, say)
        return
    _denoiser(subject, model, output, items, say)
    if baseline is not None and subject.baseline_identity is not None:
        _causal(subject, baseline, subject.baseline_identity, output, items, say)


class Task(NamedTuple):
    """A file of items: all `Cloze`, or all `Choice`."""

    name: str
    path: str
    found: list[Any]

    @property
    def choices(self) -> list[Choice]:
        return [item for item in self.found if isinstance(item, Choice)]

    def encoded(self, tokenizer: Tokenizer) -> list[Continuation]:
        """What is scored: each cloze, or each ending after its context."""
        if self.choices:
            return encode(tokenizer, [c for choice in self.choices for c in choice.clozes()])
        return encode(tokenizer, self.found)


def _denoiser(
    subject: Subject,
    model: Model,
    output: Output,
    task: Task,
    say: Say,
) -> None:
    settings, tokenizer = subject.settings, model.text_tokenizer
    items = task.encoded(tokenizer)
    layout = denoiser_layout(tokenizer, model.config.length)

    def compute() -> Json:
        bounds = suffix_bounds(
            model.diffusion,
            model.params,
            items,
            purpose_key(settings.seed, "evaluate.lambada"),
            layout,
            num_samples=settings.num_maskings,
            batch_size=settings.batch_size,
            progress=_progress("lambada/bound"),
        )
        if task.choices:
            return _result("diffusion", task, bounds, None, settings.seed)
        hits = greedy_hits(
            model.diffusion,
            model.params,
            items,
            layout,
            batch_size=settings.batch_size,
            progress=_progress("lambada/greedy"),
        )
        return _result("diffusion", task, bounds, hits, settings.seed)

    inputs = _inputs(subject, subject.identity, items) | {"num_maskings": settings.num_maskings}
    _say(say, "bound", output.item(f"lambada/{task.name}_bound", inputs, compute))


def _causal(
    subject: Subject,
    model: CausalModel,
    identity: Json,
    output: Output,
    task: Task,
    say: Say,
) -> None:
    settings = subject.settings
    items = task.encoded(model.text_tokenizer)
    layout = causal_layout(model.text_tokenizer, model.network.max_length)

    def compute() -> Json:
        scores = causal_scores(
            model.network,
            model.params,
            items,
            layout,
            batch_size=settings.batch_size,
            progress=_progress("lambada/autoregressive"),
        )
        return _result("autoregressive", task, scores.nll, scores.greedy, settings.seed)

    inputs = _inputs(subject, identity, items)
    _say(say, "autoregressive", output.item(f"lambada/{task.name}_autoregressive", inputs, compute))


def _inputs(subject: Subject, identity: Json, items: list[Continuation]) -> Json:
    return {
        "model": {k: identity[k] for k in ("digest", "precision")},
        "texts": digest_of([ids for item in items for ids in item]),
        "batch_size": subject.settings.batch_size,
        "seed": subject.settings.seed,
    }


def _result(kind: str, task: Task, nll: np.ndarray, greedy: np.ndarray | None, seed: int) -> Json:
    """LAMBADA: perplexity per text, not per token, as the reference has it. Choices: by likelihood, plain and
    for each character of an ending."""
    facts: Json = {
        "kind": kind,
        "task": task.name,
        "source": task.path,
        "num_texts": len(task.found),
    }
    if not task.choices:
        assert greedy is not None
        return {
            **facts,
            **interval("perplexity", bootstrap(exp_mean, nll, seed=seed)),
            **interval("accuracy", bootstrap(mean, greedy.astype(np.float64), seed=seed)),
        }
    hits = choice_hits(task.choices, nll)
    return {
        **facts,
        **interval("accuracy", bootstrap(mean, hits.plain.astype(np.float64), seed=seed)),
        **interval(
            "accuracy_normalised", bootstrap(mean, hits.normalised.astype(np.float64), seed=seed)
        ),
    }


def _say(say: Say, name: str, result: Json) -> None:
    perplexity = f"perplexity {result['perplexity']:.2f}, " if "perplexity" in result else ""
    say(
        f"  {result['task']}, {name}: {perplexity}accuracy {result['accuracy']:.3f} "
        f"({result['accuracy_low']:.3f}–{result['accuracy_high']:.3f})"
    )


def _progress(title: str) -> Callable[[int, int], None] | None:
    """Rows done, for a person at the terminal."""
    if not processes.is_first():
        return None
    made: list[Any] = []

    def tell(done: int, total: int) -> None:
        if not made:
            made.append(make_progress(title, total))
            made[0].__enter__()
            made[0].update(0)
        made[0].update(done, {})
        if done >= total:
            made[0].__exit__(None, None, None)

    return tell
