"""The suite "generation": texts at every number of steps, causal texts and real ones, all judged alike."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.decoders.serving import ran_out
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.bootstrap import with_interval
from sdtt_jax.evaluation.judge import (
    ReadTexts,
    Scores,
    bos_of,
    in_judge_tokens,
    reading_of,
    score_texts,
)
from sdtt_jax.evaluation.mauve import MauveConfig, mauve_score, text_features
from sdtt_jax.evaluation.quality import quality
from sdtt_jax.evaluation.record import Json, Record, digest_of
from sdtt_jax.evaluation.subject import Subject, check_writes
from sdtt_jax.evaluation.texts import held_out, held_out_name, openings
from sdtt_jax.evaluation.unknown import log_unknown, unknown_tokens
from sdtt_jax.formats import text_lines
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.base import same_ids
from sdtt_jax.model.batches import Written
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.model.prompts import with_prompt_end
from sdtt_jax.ops.sequences import unpadded

EXAMPLES = 3
PROMPTED = "prompted"


class Setup(NamedTuple):
    """What texts are written from."""

    name: str  # such as "unconditional", or `PROMPTED`
    # `[texts, given]` int32, the beginning of each text; for a model of instructions with the BOS after it,
    # which also follows an empty prompt.
    prompts: np.ndarray
    length: int  # tokens of a text, prompt included
    # `[real texts, length]` int32 to compare with; None where there is none.
    real: np.ndarray | None

    @property
    def given(self) -> int:
        return int(self.prompts.shape[1])


class Writer(NamedTuple):
    """Where a set-up's texts come from: a model at one setting, or the real world."""

    name: str  # of the item
    model: Model | CausalModel  # the texts are in its tokens
    # Write the texts, batch by batch; each text is the last tokens of its row.
    batches: list[Callable[[], Written]]
    facts: Json  # of the result
    inputs: Json  # everything that determines the texts
    # Tokens at the start of the texts, or of each, that are a prompt: `[texts]`.
    given: int | np.ndarray
    # Tokens of each text before its padding: `[texts]`; None for texts without padding.
    lengths: np.ndarray | None = None
    config: SamplerConfig | None = None  # a denoiser's sampler


class Judged(NamedTuple):
    """Texts, and the judge's scores of them."""

    # int32, `[texts, length]`; real texts that were padded have their own lengths.
    tokens: np.ndarray | list[np.ndarray]
    nfe: np.ndarray  # `[texts]`, network calls; NaN for real texts
    reading: ReadTexts  # the texts as the judge reads them
    scores: Scores | None  # None without a judge


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    for setup in setups(subject):
        writers(subject, setup)


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; finished items are not computed again."""
    for setup in setups(subject):
        every = writers(subject, setup)
        _log_texts(subject, record, setup)
        real = next((writer for writer in every if writer.facts["kind"] == "real"), None)
        for writer in every:
            compared = setup.name == PROMPTED and writer is not real
            _item(subject, record, setup, writer, real if compared else None)
        if left_out := _left_out(subject, setup):
            # What the file has is of another baseline, or of wrong ids.
            record.remove(f"generation/{setup.name}/autoregressive")
            record.log(f"  {setup.name.replace('_', ' ')}, autoregressive: none, {left_out}")


def setups(subject: Subject) -> list[Setup]:
    """Unconditional texts, and continuations of prompts if they are asked for."""
    settings = subject.settings
    result = []
    if not settings.prompts:
        compared = subject.real_text and held_out_name(subject) != ""
        real = held_out(subject, settings.num_texts) if compared else None
        result.append(unprompted(subject, "unconditional", real))
    if settings.prompted:
        whole = settings.prompt_tokens + settings.continuation_tokens
        model, mark = subject.model, subject.model.prompt_end
        require(
            mark is None or bool(settings.prompts),
            "The prompts of a model of instructions cannot be cut from held-out text, whose prompts have any "
            "length; give them with --prompts instead of --num_prompts.",
        )
        behind = isinstance(model, Model) and model.first_token is not None
        limit = model.config.length - behind - (mark is not None)
        require(
            whole <= limit,
            f"prompt_tokens and continuation_tokens add up to {whole}, but the model's texts have {limit} "
            "tokens; reduce them.",
        )
        starts = openings(subject)
        before, after = np.split(starts, [settings.prompt_tokens], axis=1)
        before = with_prompt_end(before, mark)
        prompts = np.repeat(before, settings.continuations, axis=0)
        real = np.concatenate([before, after], axis=1) if starts.shape[1] == whole else None
        whole = before.shape[1] + settings.continuation_tokens
        result.append(Setup(PROMPTED, prompts, whole, real))
    return result


def unprompted(subject: Subject, name: str, real: np.ndarray | None) -> Setup:
    """A set-up of whole texts; for a model of instructions, of completions of an empty prompt."""
    nothing = np.zeros((subject.settings.num_texts, 0), np.int32)
    return Setup(name, with_prompt_end(nothing, subject.model.prompt_end), subject.length, real)


def writers(subject: Subject, setup: Setup) -> list[Writer]:
    """Real text, the model at every number of steps, then the causal model."""
    settings, model, causal = subject.settings, subject.model, subject.causal
    result = [] if setup.real is None else [_real(subject, setup, setup.real)]
    name, free = f"evaluate.{setup.name}", setup.length - setup.given

    def drawn(model: Model | CausalModel, start: np.ndarray) -> Json:
        return subject.inputs(model, [start], "start") | {"length": setup.length}

    if isinstance(model, Model):
        masked = ((0, 0), (0, free))
        x_init = np.pad(after_bos(model, setup.prompts), masked, constant_values=model.mask_id)
        for num_steps in settings.num_steps:
            config, helper, how = subject.sampler(model, num_steps, given=bool(setup.given))
            check_writes(model, config, helper, x_init.shape[1])
            key = purpose_key(settings.seed, name, num_steps)
            batches = model.batches(key, x_init, config, settings.batch_size, helper)
            facts: Json = {"kind": "diffusion", "num_steps": num_steps}
            inputs = facts | drawn(model, x_init) | how
            item = f"steps_{num_steps:04d}"
            result.append(Writer(item, model, batches, facts, inputs, setup.given, config=config))
    if causal is not None and not _left_out(subject, setup):
        prompts = setup.prompts
        # Without a prompt BOS is all that it can begin with, whether or not the judge reads BOS.
        alone = setup.given == 0 and causal.tokenizer is not None
        bos_id = bos_of(causal, "scored" if alone else settings.first_token)
        if bos_id is not None:
            prompts = np.pad(prompts, ((0, 0), (1, 0)), constant_values=bos_id)
        require(
            prompts.shape[1] > 0,
            f"first_token='given' leaves {causal.facts['path']}, which has no tokenizer to say what BOS is, "
            "nothing to begin with; give it prompts, or leave out such a baseline with --baseline=none.",
        )
        key = purpose_key(settings.seed, name)
        batches = causal.batches(key, prompts, free, settings.batch_size, **settings.filters)
        facts = {"kind": "autoregressive"}
        inputs = facts | drawn(causal, prompts) | {"sampler": settings.filters}
        result.append(Writer("autoregressive", causal, batches, facts, inputs, setup.given))
    return result


def _log_texts(subject: Subject, record: Record, setup: Setup) -> None:
    """Logs what the vocabulary lacks of prompts, or of real text without them, and if prompts are too few."""
    settings, tokenizer = subject.settings, subject.model.tokenizer
    if setup.name != PROMPTED:
        log_unknown(record, tokenizer, () if setup.real is None else setup.real, "real text")
        return
    found, size = len(setup.prompts) // settings.continuations, settings.prompt_tokens
    wanted = settings.num_prompts or sum(1 for _ in text_lines(settings.prompts))
    if found < wanted:
        record.log(
            f"  {found} prompts instead of {wanted}: no more texts have prompt_tokens={size} tokens"
        )
    log_unknown(record, tokenizer, setup.prompts, "prompts")


def _left_out(subject: Subject, setup: Setup) -> str:
    """Why the causal model does not continue the set-up's prompts; empty if it does, or there is none."""
    model, causal = subject.model, subject.causal
    if causal is None or not setup.given or same_ids(model.tokenizer, causal.tokenizer):
        return ""
    return (
        f"the prompts are tokens of {model.facts['path']}, and {causal.facts['path']} has another tokenizer; "
        "name a baseline with the same one in --baseline"
    )


def after_bos(model: Model, prompts: np.ndarray) -> np.ndarray:
    """Prompts with BOS before them, as texts began in training, if the model has a `first_token`."""
    bos = model.first_token
    if bos is None or prompts.shape[1] == 0 or (prompts[:, 0] == bos).all():
        return prompts
    return np.insert(prompts, 0, bos, axis=1)


def judged_texts(
    subject: Subject, record: Record, setup: Setup, writer: Writer, title: str = ""
) -> Judged:
    """A writer's texts under the judge; batches and scores that the record has are not computed again.

    `title` stands beside the progress; by default the name of the item does.
    """
    settings, judge, name = subject.settings, subject.judge, _name(setup, writer)
    written = record.batches(
        name,
        writer.inputs,
        writer.batches,
        Written._asdict,
        tokens=len(setup.prompts) * setup.length // len(writer.batches),
        shown=writer.facts["kind"] != "real",
        title=title,
    )
    tokens, nfe = Written(**written)
    tokens = tokens[:, -setup.length :]
    if writer.lengths is not None:
        tokens = [row[:n] for row, n in zip(tokens, writer.lengths, strict=True)]
    reading = in_judge_tokens(judge, tokens, writer.model.tokenizer, subject.ends, writer.given)
    if judge is None:
        return Judged(tokens, nfe, reading, None)

    def score() -> dict[str, np.ndarray]:
        return score_texts(
            judge,
            reading.seen,
            batch_size=settings.batch_size,
            first_token=settings.first_token,
            given=reading.starts,
        )._asdict()

    scores = record.part(name, writer.inputs | judging(subject), "scores", score)
    return Judged(tokens, nfe, reading, Scores(**scores))


def _item(
    subject: Subject, record: Record, setup: Setup, writer: Writer, real: Writer | None
) -> None:
    settings, judge, name = subject.settings, subject.judge, _name(setup, writer)
    written = setup.name == PROMPTED and writer.facts["kind"] != "real"
    continuations = settings.continuations if written else 1
    inputs = writer.inputs | judging(subject) | {"real": real and real.inputs}
    inputs["continuations"] = continuations

    def compute() -> Json:
        judged = judged_texts(subject, record, setup, writer)
        result = writer.facts | {"setup": setup.name, "length": setup.length}
        if writer.facts["kind"] != "real":
            result["nfe"] = float(judged.nfe.mean())
        if writer.config is not None and _ran_out(writer.config, judged.nfe):
            result["ran_out"] = True
        result |= judged.reading.facts
        if judge is not None:
            result["first_token"] = settings.first_token
            result["unknown_tokens"] = unknown_tokens(judge.tokenizer, judged.reading.seen)
        texts, scores = judged.reading.written, judged.scores
        result |= quality(texts, scores, seed=settings.seed, continuations=continuations)
        if real is not None and judge is not None:
            result |= _mauve(subject, judge, record, setup, judged, real)
        lines = _lines(judged, writer.model)
        record.write_texts(name, lines)
        return result | {"examples": [line["text"] for line in lines[:EXAMPLES] if "text" in line]}

    named = {field: writer.facts[field] for field in ("source",) if field in writer.facts}
    found = record.item(name, inputs, compute, named)
    record.log(_said(f"{setup.name}, {writer.name}", found))


def _mauve(
    subject: Subject,
    judge: CausalModel,
    record: Record,
    setup: Setup,
    written: Judged,
    writer: Writer,
) -> Json:
    """MAUVE of generated against real texts, prompts included, on the judge's features; {} for single texts.

    The features of the real texts are kept as a part of the record: every set of generated texts needs them.
    """
    real = judged_texts(subject, record, setup, writer)
    seen, theirs_seen = ([t for t in texts.reading.seen if len(t)] for texts in (written, real))
    if min(len(seen), len(theirs_seen)) < 2:
        return {}

    def features(texts: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"features": text_features(judge, texts, batch_size=subject.settings.batch_size)}

    inputs = writer.inputs | judging(subject)
    theirs = record.part(_name(setup, writer), inputs, "features", lambda: features(theirs_seen))
    config = MauveConfig(subject.settings.seed)
    score = mauve_score(features(seen)["features"], theirs["features"], config)
    facts = {"mauve_buckets": len(score.p), "mauve_real_texts": len(real.tokens)}
    return {"mauve": score.value} | facts


def _name(setup: Setup, writer: Writer) -> str:
    return f"generation/{setup.name}/{writer.name}"


def _real(subject: Subject, setup: Setup, real: np.ndarray) -> Writer:
    facts = {"kind": "real", "source": held_out_name(subject)}
    inputs: Json = {"texts": digest_of([real]), "given": setup.given}
    written = Written(real, np.full(len(real), np.nan))  # no calls
    sequences = subject.model.sequences
    given: int | np.ndarray = setup.given
    lengths = None
    if setup.name != PROMPTED:
        # Whole sequences of instructions begin with their own prompts, which no model had to write.
        texts, given = unpadded(real, sequences)
        if sequences is not None and sequences.has_padding:
            lengths = np.array([len(text) for text in texts])
    return Writer("real_text", subject.model, [lambda: written], facts, inputs, given, lengths)


def judging(subject: Subject) -> Json:
    """The inputs that determine the scores of texts, apart from the texts."""
    settings, judge = subject.settings, subject.judge
    return {
        "judge": judge and {"path": judge.facts["path"]} | judge.fingerprint | reading_of(judge),
        "first_token": settings.first_token,
        "ends": subject.ends,
        "resampling_seed": settings.seed,
    }


def _lines(judged: Judged, model: Model | CausalModel) -> list[Json]:
    """What the folder of the record keeps of each text."""
    lines = []
    for index, row in enumerate(judged.tokens):
        line: Json = {"tokens": row.tolist()}
        if model.tokenizer is not None:
            line["text"] = model.tokenizer.decode(judged.reading.texts[index])
        if judged.scores is not None:
            scored = judged.scores.scored[index] > 0
            line["nll_per_token"] = float(judged.scores.per_token[index]) if scored else None
        lines.append(line)
    return lines


def _ran_out(config: SamplerConfig, nfe: np.ndarray) -> bool:
    """Whether in a batch, by its calls, the steps left tokens masked, which a greedy call then filled."""
    mode = parse_mode(config.mode)
    return any(ran_out(mode, config.num_steps, config.guidance, int(n)) for n in np.unique(nfe))


def _said(title: str, result: Json) -> str:
    """The log line of a result, which never gives perplexity without entropy."""
    parts = []
    if "gen_ppl" in result:
        parts.append(f"generative perplexity {with_interval(result, 'gen_ppl', 2)}")
    if empty := result.get("texts_not_scored"):
        parts.append(f"{empty} text{'s' * (empty > 1)} with nothing to score")
    if unknown := result.get("unknown_tokens"):
        parts.append(f"{unknown} unknown token{'s' * (unknown > 1)}")
    parts.append(f"entropy {result['entropy']:.3f}")
    if result.get("mauve") is not None:
        parts.append(f"MAUVE {result['mauve']:.3f}")
    if "nfe" in result:
        parts.append(f"{result['nfe']:.1f} network calls")
    if result.get("ran_out"):
        parts.append("too few steps: the most probable tokens filled the rest")
    return f"  {title.replace('_', ' ')}: {', '.join(parts)}"
