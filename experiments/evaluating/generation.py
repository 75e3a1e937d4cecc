"""The suite "generation": texts at every number of steps, causal and real ones, all judged alike."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluating.judging import Judged, first_token, judge, mauve, quality
from experiments.evaluating.output import Output, digest_of
from experiments.evaluating.progress import tracked
from experiments.evaluating.subject import Subject
from experiments.evaluating.texts import held_out, held_out_name, openings
from sdtt_jax.config import require, to_mapping
from sdtt_jax.data import Tokenizer
from sdtt_jax.evaluation.batches import BatchFunction, batch_rows, batches, run_batch
from sdtt_jax.evaluation.generation import fill, masks, proceed
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model

Json = dict[str, Any]
Say = Callable[[str], None]
EXAMPLES = 3


class Setup(NamedTuple):
    """What texts are written from.

    Attributes:
      name: "unconditional" or "prompted".
      prompts: `[texts, given]` int32.
      length: tokens of a text, prompt included.
      real: `[real texts, length]` int32 to compare with; None where there is none.
    """

    name: str
    prompts: np.ndarray
    length: int
    real: np.ndarray | None

    @property
    def given(self) -> int:
        return int(self.prompts.shape[1])


class Writer(NamedTuple):
    """One way to write a set-up's texts.

    Attributes:
      name: of the item.
      model: whose.
      identity: of the model, for the record.
      function: batch function, from `rows` to tokens and network calls.
      rows: what it starts from, `[texts, …]` int32.
      skip: tokens at the start of its results that are not the text's (a BOS).
      facts: for the record.
    """

    name: str
    model: Model | CausalModel
    identity: Json
    function: BatchFunction
    rows: np.ndarray
    skip: int
    facts: Json


def generation(subject: Subject, output: Output, say: Say) -> None:
    """Runs the suite; finished items are not computed again."""
    for setup in setups(subject):
        real = _real(subject, output, setup, say)
        for writer in writers(subject, setup):
            _written(subject, output, setup, writer, real, say)


def setups(subject: Subject) -> list[Setup]:
    """Unconditional texts, and continuations of prompts if they are asked for."""
    settings = subject.settings
    named = held_out_name(subject)
    real = held_out(subject) if named else None
    nothing = np.zeros((settings.num_texts, 0), np.int32)
    found = [] if settings.prompts else [Setup("unconditional", nothing, subject.length, real)]
    if settings.prompted:
        whole = settings.prompt_tokens + settings.continuation_tokens
        limit = subject.model.config.length
        require(
            whole <= limit,
            f"prompt_tokens and continuation_tokens are {whole} together, the model's texts {limit}; shorten "
            "them.",
        )
        starts = openings(subject)
        prompts = np.repeat(starts[:, : settings.prompt_tokens], settings.continuations, axis=0)
        found.append(
            Setup("prompted", prompts, whole, starts if starts.shape[1] == whole else None)
        )
    return found


def writers(subject: Subject, setup: Setup) -> list[Writer]:
    """The model at every number of steps, then the causal one."""
    settings, model = subject.settings, subject.model
    key = purpose_key(settings.seed, f"evaluate.{setup.name}")
    found = []
    if isinstance(model, Model):
        rows = masks(len(setup.prompts), setup.length, model.mask_id)
        rows[:, : setup.given] = setup.prompts
        for num_steps in settings.num_steps:
            config = settings.sampler(num_steps)
            found.append(
                Writer(
                    f"steps_{num_steps:04d}",
                    model,
                    subject.identity,
                    fill(model.diffusion, config, key),
                    rows,
                    0,
                    {"kind": "diffusion", "sampler": to_mapping(config), "num_steps": num_steps},
                )
            )
    causal = model if isinstance(model, CausalModel) else subject.baseline
    identity = subject.identity if subject.is_causal else subject.baseline_identity
    if causal is not None and identity is not None:
        bos_id = first_token(subject, causal)
        rows = setup.prompts
        if bos_id is not None:
            rows = np.concatenate([np.full((len(rows), 1), bos_id, np.int32), rows], axis=1)
        require(
            rows.shape[1] > 0,
            "first_token='given' leaves a causal model nothing to begin with; give it prompts.",
        )
        facts = {"kind": "autoregressive", "sampler": settings.filters}
        function = proceed(causal.network, setup.length - setup.given, key, **settings.filters)
        skip = int(bos_id is not None)
        found.append(Writer("autoregressive", causal, identity, function, rows, skip, facts))
    return found


def _written(
    subject: Subject,
    output: Output,
    setup: Setup,
    writer: Writer,
    real: Callable[[], Judged] | None,
    say: Say,
) -> None:
    name = f"generation/{setup.name}/{writer.name}"
    drawn = {
        "model": {k: writer.identity[k] for k in ("digest", "precision")},
        "start": digest_of([writer.rows]),
        "length": setup.length,
        "batch_size": subject.settings.batch_size,
        "seed": subject.settings.seed,
        **writer.facts,
    }
    compared = setup.real if setup.given else None
    inputs = drawn | _judging(subject)
    inputs["real"] = None if compared is None else digest_of([compared])

    def compute() -> Json:
        tokens, calls = write(subject, output, name, drawn, writer)
        tokens = tokens[:, writer.skip :]
        judged = judge(subject, tokens, writer.model.tokenizer, setup.given)
        result = {
            **{k: v for k, v in writer.facts.items() if k != "sampler"},
            "setup": setup.name,
            "nfe": float(calls.mean()),
            "length": setup.length,
            **quality(subject, judged, setup.given),
        }
        if setup.given and real is not None:
            result |= mauve(subject, judged, real())
        records = _records(tokens, judged, writer.model.tokenizer)
        output.write_texts(name, records)
        return result | {"examples": [r["text"] for r in records[:EXAMPLES] if "text" in r]}

    say(_line(f"{setup.name}, {writer.name}", output.item(name, inputs, compute)))


def write(
    subject: Subject, output: Output, name: str, inputs: Json, writer: Writer
) -> tuple[np.ndarray, np.ndarray]:
    """The texts of a writer, batch after batch: tokens `[texts, …]` int32 and network calls `[texts]`."""
    params = writer.model.params
    size = batch_rows(params, min(subject.settings.batch_size, len(writer.rows)))
    parts = []
    pieces = list(batches(writer.rows, size))
    for index, rows in tracked(name, pieces, tokens=size * inputs["length"]):

        def compute(index: int = index, rows: np.ndarray = rows) -> dict[str, np.ndarray]:
            tokens, nfe = run_batch(writer.function, params, index, rows, size)
            return {"tokens": tokens, "nfe": nfe}

        parts.append(output.part(name, inputs, index, compute))
    return (
        np.concatenate([part["tokens"] for part in parts]),
        np.concatenate([part["nfe"] for part in parts]),
    )


def _real(subject: Subject, output: Output, setup: Setup, say: Say) -> Callable[[], Judged] | None:
    """The real texts, judged when they are asked for; their figures are an item."""
    if setup.real is None:
        return None
    texts = setup.real

    @functools.cache
    def judged() -> Judged:
        return judge(subject, texts, subject.model.tokenizer, setup.given)

    def compute() -> Json:
        facts = {"kind": "real", "setup": setup.name, "source": held_out_name(subject)}
        return facts | {"length": setup.length} | quality(subject, judged(), setup.given)

    name = f"generation/{setup.name}/real_text"
    inputs = {"texts": digest_of([texts]), "given": setup.given, **_judging(subject)}
    say(_line(f"{setup.name}, real text", output.item(name, inputs, compute)))
    return judged


def _judging(subject: Subject) -> Json:
    settings, found = subject.settings, subject.judge_identity
    return {
        "judge": found and {k: found[k] for k in ("path", "digest", "precision")},
        "first_token": settings.first_token,
        "ends": settings.ends,
        "resampling_seed": settings.seed,
    }


def _records(tokens: np.ndarray, judged: Judged, tokenizer: Tokenizer | None) -> list[Json]:
    records = []
    for index, row in enumerate(tokens):
        record: Json = {"tokens": row.tolist()}
        if tokenizer is not None:
            record["text"] = tokenizer.decode(row)
        if judged.scores is not None:
            record["nll_per_token"] = float(judged.scores.per_token[index])
        records.append(record)
    return records


def _line(title: str, result: Json) -> str:
    """Perplexity is never said without entropy."""
    parts = []
    if "gen_ppl" in result:
        low, high = result["gen_ppl_low"], result["gen_ppl_high"]
        parts.append(f"generative perplexity {result['gen_ppl']:.2f} ({low:.2f}–{high:.2f})")
    parts.append(f"entropy {result['entropy']:.3f}")
    if result.get("mauve") is not None:
        parts.append(f"MAUVE {result['mauve']:.3f}")
    if "nfe" in result:
        parts.append(f"{result['nfe']:.1f} network calls")
    return f"  {title}: {', '.join(parts)}"
