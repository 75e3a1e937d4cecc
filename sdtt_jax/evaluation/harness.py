"""What lm-evaluation-harness asks of a model, answered by a denoiser or a causal model.

The harness is no dependency: `adapter` makes its model class from the base class that it is given.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from sdtt_jax.config import positive, require
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.cloze import Scores, scores
from sdtt_jax.evaluation.continuations import Cloze, Continuation, encode
from sdtt_jax.evaluation.settings import setting
from sdtt_jax.keys import check_seed, purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model


@dataclasses.dataclass(frozen=True)
class Options:
    """How requests are answered."""

    num_steps: int = setting(32, "Sampling steps of generated text.")
    num_maskings: int = setting(32, "Maskings of each item for the bound on its likelihood.")
    max_tokens: int = setting(256, "Tokens of generated text, where a request does not say.")
    batch_size: int = setting(16, "Rows at once.")
    seed: int = setting(0, "Of everything that is drawn.")

    def __post_init__(self) -> None:
        positive(self, "num_steps", "num_maskings", "max_tokens", "batch_size")
        check_seed(self.seed)


def log_likelihoods(
    model: Model | CausalModel, pairs: Sequence[tuple[str, str]], options: Options
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats, and whether it is what the model would write greedily.

    Of a denoiser a bound from below, and what it fills in for all tokens at once; exact for a causal model.

    Args:
      model: with a tokenizer.
      pairs: contexts and continuations.
      options: how a bound is estimated.

    Raises:
      ConfigError: a continuation has no tokens, or more than the model reads.
    """
    if not pairs:
        return []
    items = encode(model.text_tokenizer, [Cloze(*pair) for pair in pairs])
    nll, greedy = _scores(model, items, options)
    return [(-float(n), bool(g)) for n, g in zip(nll, greedy, strict=True)]


def rolling_log_likelihoods(
    model: Model | CausalModel, texts: Sequence[str], options: Options
) -> list[float]:
    """log p of whole texts, in nats; a text that is longer than the model reads, window by window."""
    room = _most(model) - 2  # for BOS and EOS
    windows, owners = [], []
    for owner, text in enumerate(texts):
        ids = model.text_tokenizer.encode(text)
        require(len(ids) > 0, f"text {owner} has no tokens; nothing is to score.")
        for start in range(0, len(ids), room):
            windows.append(Continuation(ids[:0], ids[start : start + room]))
            owners.append(owner)
    if not windows:
        return []
    nll, _ = _scores(model, windows, options)
    totals = np.zeros(len(texts))
    np.add.at(totals, owners, nll)
    return [-float(total) for total in totals]


def generations(
    model: Model | CausalModel, requests: Iterable[tuple[str, dict[str, Any]]], options: Options
) -> list[str]:
    """How contexts go on: each up to the first of its `until` strings.

    Args:
      model: with a tokenizer; a denoiser fills `max_gen_toks` positions behind the context in
        `options.num_steps` steps.
      requests: context and the harness's settings: `until`, `max_gen_toks`, `temperature`, `top_k`, `top_p`,
        `do_sample`.
      options: steps and seed, and how many tokens where a request does not say.
    """
    tokenizer, length = model.text_tokenizer, _most(model)
    key = purpose_key(options.seed, "harness.generate")
    texts = []
    for index, (context, wanted) in enumerate(requests):
        count = min(int(wanted.get("max_gen_toks") or options.max_tokens), length // 2)
        ids = tokenizer.encode_part(context)[-(length - count - 1) :]
        filters = _filters(wanted)
        draw = jax.random.fold_in(key, index)
        if isinstance(model, Model):
            tokens = _filled(model, draw, ids, count, options.num_steps, filters)
        else:
            prompt = tokenizer.decode(ids)
            tokens = np.asarray(model.sample(draw, 1, count, prompt, **filters))[0, -count:]
        text = tokenizer.decode(tokens, separator="\0").partition("\0")[0]
        until = wanted.get("until") or []
        for end in [until] if isinstance(until, str) else until:
            text = text.partition(end)[0] if end else text
        texts.append(text)
    return texts


def _filled(
    model: Model, key: jax.Array, ids: np.ndarray, count: int, num_steps: int, filters: Any
) -> np.ndarray:
    row = np.full(model.config.length, model.mask_id, np.int32)
    row[0] = model.text_tokenizer.bos_id
    row[1 : 1 + len(ids)] = ids
    config = SamplerConfig(num_steps=num_steps, **filters)
    x = np.asarray(model.denoise(key, row[None], config).x)[0]
    return x[1 + len(ids) : 1 + len(ids) + count]


def _filters(wanted: dict[str, Any]) -> dict[str, Any]:
    sampled = wanted.get("do_sample", float(wanted.get("temperature") or 0) > 0)
    if not sampled:
        return {"temperature": 0.0}
    return {
        "temperature": float(wanted.get("temperature") or 1.0),
        "top_k": int(wanted.get("top_k") or 0),
        "top_p": float(wanted.get("top_p") or 1.0),
    }


def _scores(model: Model | CausalModel, items: Sequence[Continuation], options: Options) -> Scores:
    key = purpose_key(options.seed, "harness.bounds")
    # Without the weight of early times: for one token a single masking is exact.
    config = BoundConfig("counts", options.num_maskings)
    return scores(model, items, key, config, batch_size=options.batch_size)


def _most(model: Model | CausalModel) -> int:
    """Tokens of a row at most."""
    if isinstance(model, CausalModel):
        return model.network.max_length or model.config.length
    return model.config.length


def adapter(base: type) -> Callable[[Model | CausalModel, Options], Any]:
    """The harness's model class, made from a model and options.

    Args:
      base: `lm_eval.api.model.LM`.
    """

    class Adapter(base):  # type: ignore[misc]
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
