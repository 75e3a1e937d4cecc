"""Answers the requests of lm-evaluation-harness with a denoiser or a causal model.

The harness is not a dependency: `adapter` is given its base class.
"""

import collections
import contextlib
import dataclasses
import os
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sdtt_jax.config import nearest, require, whole
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.cloze import ItemScores, scores
from sdtt_jax.evaluation.continuations import (
    Cloze,
    Continuation,
    RowLayout,
    contexts_cut,
    encode,
    layout_of,
)
from sdtt_jax.evaluation.settings import Variation, setting
from sdtt_jax.evaluation.unknown import unknown_note
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.categorical import Filters
from sdtt_jax.paths import as_path

# Names that the harness and its other models give the number of tokens to write.
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
FILTERS = tuple(field.name for field in dataclasses.fields(Filters))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Variation):
    """How requests are answered."""

    num_steps: int = setting(32, "Sampling steps of generated text.", denoisers=True)
    num_maskings: int = setting(
        32, "Maskings of each item for the bound on its likelihood.", denoisers=True
    )
    max_tokens: int = setting(256, "Tokens of generated text, unless a request says otherwise.")
    batch_size: int = setting(16, "Rows at once.")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, self, "num_steps", "num_maskings", "max_tokens")


def log_likelihoods(
    model: Model | CausalModel, pairs: Sequence[tuple[str, str]], options: Options
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats, and whether the continuation is the model's greedy answer.

    For a denoiser, a lower bound, and what it fills in for all tokens at once; both exact for a causal model.
    A context that is too long loses its beginning; one warning says how many do. `ConfigError` if a
    continuation has no tokens, or more than the model reads.
    """
    if not pairs:
        return []
    if isinstance(model, CausalModel):
        model.require_whole_texts()
    items = encode(model.text_tokenizer, [Cloze(*pair) for pair in pairs], model.prompt_end)
    _warn_of_unknown(model, [np.concatenate(item) for item in items])
    cut = contexts_cut(items, layout_of(model))
    if cut:
        warnings.warn(f"contexts that lost their beginning: {cut} of {len(items)}", stacklevel=2)
    nll, greedy = _scores(model, items, options)
    return [(-float(n), bool(g)) for n, g in zip(nll, greedy, strict=True)]


def rolling_log_likelihoods(
    model: Model | CausalModel, texts: Sequence[str], options: Options
) -> list[float]:
    """log p of whole texts, in nats; texts longer than the model's length are read in windows.

    Each window of a denoiser stands between BOS and EOS. Those of a causal model are lm_eval's own
    (`get_rolling_token_windows` with `context_len=1`): the first begins with BOS, each other one with the
    last token of the window before it, and the last one with as many tokens as fit.
    """
    layout, causal = layout_of(model), isinstance(model, CausalModel)
    room = layout.room(np.empty(0))
    windows: list[tuple[int, Continuation]] = []
    for owner, text in enumerate(texts):
        ids = model.text_tokenizer.encode(without_traces_of_files(text))
        require(len(ids) > 0, f"text {owner} has no tokens; there is nothing to score.")
        known = model.text_tokenizer.reads(text, ids)
        require(known, f"text {owner} {model.text_tokenizer.reads_nothing}.")
        for start in range(0, len(ids), room):
            window = ids[start : start + room]
            before = ids[max(0, start + len(window) - room - 1) : start] if causal else ids[:0]
            windows.append((owner, Continuation(before, window)))
    _warn_of_unknown(model, [window.suffix for _, window in windows])
    totals = np.zeros(len(texts))
    going_on = dataclasses.replace(layout, bos_id=None, mark_id=None)
    for first, rows in ((True, layout), (False, going_on)):
        part = [(owner, window) for owner, window in windows if first == (len(window.prefix) == 0)]
        if part:
            owners, items = zip(*part, strict=True)
            np.add.at(totals, list(owners), _scores(model, items, options, rows).nll)
    return [-float(total) for total in totals]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The settings of a request to generate text."""

    count: int | None  # tokens; None if the request does not say
    until: tuple[str, ...]  # strings before which the text ends
    filters: Filters  # of the token distribution
    unused: tuple[str, ...]  # names of settings that nothing here knows or uses


def wanted(settings: Mapping[str, Any]) -> Wanted:
    """Reads the harness's settings of a request. None counts as not given; 0 is a value.

    Args:
      settings: `until`, a string or several; `max_gen_toks` or one of its other names; `temperature`, 0 being
        greedy; `top_k`, `top_p`; and `do_sample`, which draws at 1 if no temperature is given. With neither
        of the two, the answer is greedy.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    counts = {name: given[name] for name in COUNTS if name in given}
    for name, value in counts.items():
        whole(0, **{name: value})
    require(
        len({*counts.values()}) < 2, f"{counts} give different numbers of tokens; keep one of them."
    )
    sampled = given.get("do_sample", given.get("temperature", 0) != 0)
    require(isinstance(sampled, bool), f"do_sample must be true or false, not {sampled!r}.")
    filters = Filters(**{name: given[name] for name in FILTERS if name in given})
    until = given.get("until", ())
    ends = [until] if isinstance(until, str) else until
    require(
        isinstance(ends, list | tuple) and all(isinstance(end, str) for end in ends),
        f"until must be a string or a list of strings, not {until!r}.",
    )
    # A greedy request uses no filters; temperatures of 0 and 1, and filters that are off, are not reported.
    idle = [n for n in FILTERS if not sampled and getattr(filters, n) not in (0, 1)]
    known = (*COUNTS, *FILTERS, "until", "do_sample")
    unused = tuple(name for name in given if name in idle or name not in known)
    if not sampled:
        filters = Filters(temperature=0.0)
    return Wanted(next(iter(counts.values()), None), tuple(filter(None, ends)), filters, unused)


def generations(
    model: Model | CausalModel, requests: Iterable[tuple[str, dict[str, Any]]], options: Options
) -> list[str]:
    """Continues contexts, each until its end or the first of its `until` strings.

    What is drawn depends on the context's ids and on the number of equal requests before it, so that repeated
    requests differ (unless they are greedy); other requests do not matter. One warning names all settings
    that cannot be honoured.

    Args:
      model: with a tokenizer; a denoiser fills the positions after the context in `options.num_steps` steps.
      requests: context and the harness's settings, as `wanted` reads them. A long context loses its beginning
        to make room for the tokens that are wanted; if these alone would fill a row, it keeps half of one.
      options: steps and seed, and how many tokens where a request does not say.
    """
    tokenizer = model.text_tokenizer
    # Tokens besides BOS; an EOS would be one that is written.
    layout = layout_of(model)
    most = layout.room(np.empty(0)) + (layout.eos_id is not None)
    key = purpose_key(options.seed, "harness.generate")
    pairs = [(tokenizer.encode_part(context), wanted(settings)) for context, settings in requests]
    unused = {name for _, request in pairs for name in request.unused}
    texts, repeats, short, cut = [], collections.Counter[Any](), 0, 0
    for ids, request in pairs:
        asked = options.max_tokens if request.count is None else request.count
        kept = min(len(ids), most - (asked if asked < most else most - most // 2))
        count = min(asked, most - kept)
        short += request.count is not None and count < asked
        cut += kept < len(ids)
        same = (ids.tobytes(), request)
        draw = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(same[0])), repeats[same])
        repeats[same] += not request.filters.greedy
        start = layout.opening(ids[len(ids) - kept :])
        tokens = _continued(model, draw, start, count, request.filters, options.num_steps)
        ends = np.flatnonzero(np.isin(tokens, (tokenizer.bos_id, tokenizer.eos_id)))
        behind = kept > 0 and model.prompt_end is None
        text = tokenizer.decode(tokens[: ends[0] if len(ends) else None], behind=behind)
        for end in request.until:
            text = text.partition(end)[0]
        texts.append(text)
    told = [f"not used: {', '.join(sorted(unused))}"] * bool(unused)
    told += [f"more tokens wanted than fit: {short} of {len(texts)} requests"] * bool(short)
    told += [f"contexts that lost their beginning: {cut} of {len(texts)}"] * bool(cut)
    if told:
        warnings.warn(f"Settings of generated text, {'; '.join(told)}.", stacklevel=2)
    return texts


def _continued(
    model: Model | CausalModel,
    key: jax.Array,
    start: np.ndarray,
    count: int,
    filters: Filters,
    num_steps: int,
) -> np.ndarray:
    """`count` tokens that follow `start`: `[count]` int32."""
    if count == 0:
        return start[:0]
    fields = dataclasses.asdict(filters)
    if isinstance(model, CausalModel):
        [write] = model.batches(key, start[None], count, **fields)
        return np.asarray(write().tokens)[0, len(start) :]
    row = np.full(model.config.length, model.mask_id, np.int32)
    row[: len(start)] = start
    x = model.denoise(key, row[None], SamplerConfig(num_steps=num_steps, **fields)).x
    return np.asarray(x)[0, len(start) : len(start) + count]


def _scores(
    model: Model | CausalModel,
    items: Sequence[Continuation],
    options: Options,
    layout: RowLayout | None = None,
) -> ItemScores:
    key = purpose_key(options.seed, "harness.bounds")
    # "counts" does not weight early times, so that for one token a single masking is exact.
    config = BoundConfig("counts", options.num_maskings)
    return scores(model, items, key, config, layout, batch_size=options.batch_size)


def _warn_of_unknown(model: Model | CausalModel, texts: Sequence[np.ndarray]) -> None:
    if note := unknown_note(model.text_tokenizer, texts, "texts to score"):
        warnings.warn(note, stacklevel=3)


def check_tasks(names: Iterable[str], known: Collection[str]) -> None:
    """Raises `ConfigError` for the first of `names` that is no file and not among `known`, the harness's."""
    for name in names:
        near = nearest(name, known) or "--include names a folder with tasks of your own."
        require(
            name in known or as_path(name).is_file(),
            f"--tasks={name}: the harness has no task of this name; {near}",
        )


@contextlib.contextmanager
def enough_examples(num_fewshot: int | None) -> Iterator[None]:
    """Makes a `ConfigError` of the harness's error about a task with fewer solved examples than asked for."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        # As `random.sample` says it, and the harness's own sampler of the first ones.
        if not num_fewshot or not re.search(r"larger than population|exceeds the \d+", str(error)):
            raise
        raise ConfigError(
            f"--num_fewshot={num_fewshot} is more solved examples than one of the tasks has; take fewer."
        ) from None


def resamples(metrics: Any) -> int:
    """How many resamples the harness may draw for the errors of figures that have no formula for them.

    Its bootstrap forks the process, which JAX's threads do not survive, unless the environment tells it not
    to. For a version that does not ask, 0: it then leaves out all standard errors, also those by formula.

    Args:
      metrics: its module `lm_eval.api.metrics`.
    """
    if not hasattr(metrics, "_bootstrap_internal_no_mp"):
        return 0
    os.environ["DISABLE_MULTIPROC"] = "1"
    return 1000


def adapter(base: type) -> Callable[[Model | CausalModel, Options], Any]:
    """The harness's model class, to be called with a model and options; `base` is `lm_eval.api.model.LM`."""

    class Adapter(base):
        """Answers the harness's requests, each an object with `args`."""

        def __init__(self, model: Model | CausalModel, options: Options):
            super().__init__()
            self.model, self.options = model, options

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [tuple(request.args) for request in requests]
            return log_likelihoods(self.model, pairs, self.options)

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            texts = [request.args[0] for request in requests]
            return rolling_log_likelihoods(self.model, texts, self.options)

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            pairs = [(request.args[0], dict(request.args[1])) for request in requests]
            return generations(self.model, pairs, self.options)

    return Adapter
