"""The suite "lambada": the ends of texts by likelihood and by the most probable tokens; multiple choice."""

from typing import Any

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.evaluation.bootstrap import bootstrap, exp_mean, share, with_interval
from sdtt_jax.evaluation.cloze import ItemScores, choice_hits, scores
from sdtt_jax.evaluation.continuations import Choice, contexts_cut, encode, layout_of
from sdtt_jax.evaluation.record import Json, Record, digest_of
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.tasks import read_task
from sdtt_jax.evaluation.unknown import log_unknown, unknown_tokens
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.base import Loaded
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.parallel import processes
from sdtt_jax.progress import make_progress


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    require(bool(subject.settings.task_file), "--suite=lambada needs a --task_file.")
    for model in filter(None, (subject.model, subject.causal)):
        if not _is_of_noise(model):
            _ = model.text_tokenizer


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite: LAMBADA's perplexity and accuracy, or the accuracy of a multiple-choice set."""
    settings = subject.settings
    task = read_task(settings.task, settings.task_file)
    model = subject.model
    if _is_of_noise(model):
        record.log("  lambada: none, the model is a function of its noise")
    elif isinstance(model, Model):
        _item(subject, model, record, "bound", task)
    if subject.causal is not None:
        _item(subject, subject.causal, record, "autoregressive", task)


def _is_of_noise(model: Loaded) -> bool:
    return isinstance(model, Model) and model.diffusion.noise_kind is not None


def _item(
    subject: Subject, model: Model | CausalModel, record: Record, how: str, task: list[Any]
) -> None:
    settings = subject.settings
    name = f"lambada/{settings.task}_{how}"
    choices = [item for item in task if isinstance(item, Choice)]
    clozes = [cloze for choice in choices for cloze in choice.clozes()] if choices else task
    items = encode(model.text_tokenizer, clozes, model.prompt_end)
    parts = [np.concatenate(item) for item in items]
    log_unknown(record, model.tokenizer, parts, how)
    layout = layout_of(model)
    cut = contexts_cut(items, layout)
    if cut:
        record.log(f"  {how}: {cut} of {len(items)} contexts are too long and lose their beginning")
    inputs = subject.inputs(model, [ids for item in items for ids in item])
    if isinstance(model, Model):
        inputs["num_maskings"] = settings.num_maskings
    if choices:
        inputs["choices"] = digest_of(
            np.array([choice.answer, *map(len, choice.endings)]) for choice in choices
        )

    def compute() -> Json:
        total = len(items) * (settings.num_maskings if how == "bound" else 1)
        with make_progress(name, total, shown=processes.is_first()) as progress:
            found = scores(
                model,
                items,
                purpose_key(settings.seed, "evaluate.lambada"),
                BoundConfig("antithetic", settings.num_maskings),
                batch_size=settings.batch_size,
                progress=progress,
            )
        kind = "diffusion" if how == "bound" else "autoregressive"
        facts: Json = {"kind": kind, "task": settings.task, "source": settings.task_file}
        facts |= {"contexts_cut": cut, "unknown_tokens": unknown_tokens(model.tokenizer, parts)}
        return facts | {"num_texts": len(task)} | _measures(choices, found, settings)

    result = record.item(name, inputs, compute, {"source": settings.task_file})
    figures = [("perplexity", 2), ("accuracy", 3)]
    shown = [f"{of} {with_interval(result, of, digits)}" for of, digits in figures if of in result]
    record.log(f"  {result['task']}, {how}: {', '.join(shown)}")


def _measures(choices: list[Choice], found: ItemScores, settings: Settings) -> Json:
    """LAMBADA: perplexity per text, not per token, as in the reference. Choices: accuracy by likelihood,
    plain and per character of an ending."""
    seed = settings.seed
    if not choices:
        perplexity = bootstrap(exp_mean, found.nll, seed=seed).named("perplexity")
        return perplexity | share(found.greedy, seed=seed).named("accuracy")
    hits = choice_hits(choices, found.nll)
    normalised = share(hits.normalised, seed=seed).named("accuracy_normalised")
    return share(hits.plain, seed=seed).named("accuracy") | normalised
