"""The harness's requests. Oracles: sums by hand over the model's own log-probabilities, and its samples."""

from types import SimpleNamespace

import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.harness import (
    Options,
    adapter,
    generations,
    log_likelihoods,
    rolling_log_likelihoods,
)
from tests.experiments.processes import call

OPTIONS = Options(num_steps=4, num_maskings=256, max_tokens=6, batch_size=64)


@pytest.fixture(scope="module")
def denoiser(unbroken):
    return sdtt_jax.load(unbroken.root)


@pytest.fixture(scope="module")
def judge(unbroken):
    return sdtt_jax.load(unbroken.root / "judge")


def row(model, prefix, suffix):
    tokenizer = model.text_tokenizer
    ids = [tokenizer.encode_part(part) for part in (prefix, suffix)]
    return np.concatenate([[tokenizer.bos_id], *ids, [tokenizer.eos_id]]), len(ids[0]) + 1


def test_one_token_is_scored_exactly_by_a_denoiser(denoiser):
    tokens, start = row(denoiser, "in th", "e")
    x_t = np.where(np.arange(len(tokens)) == start, denoiser.mask_id, tokens)
    log_probs = np.asarray(denoiser.log_probs(x_t[None]))[0, start]
    [(value, greedy)] = log_likelihoods(denoiser, [("in th", "e")], OPTIONS)
    assert value == pytest.approx(log_probs[tokens[start]], rel=1e-4)
    assert greedy == (log_probs.argmax() == tokens[start])


def test_a_causal_model_is_exact(judge):
    [(value, greedy)] = log_likelihoods(judge, [("in the", " be")], OPTIONS)
    tokens, start = row(judge, "in the", " be")
    tokens = tokens[:-1]
    log_probs = np.asarray(judge.log_probs(tokens[None]))[0]
    places = range(start, len(tokens))
    assert value == pytest.approx(sum(log_probs[i - 1, tokens[i]] for i in places), rel=1e-4)
    assert greedy == all(log_probs[i - 1].argmax() == tokens[i] for i in places)


def test_a_long_text_is_the_sum_of_its_windows(judge):
    room = judge.config.length - 2
    text = "in the beginning god created the heavens and the earth"
    [whole] = rolling_log_likelihoods(judge, [text], OPTIONS)
    parts = rolling_log_likelihoods(judge, [text[:room], text[room : 2 * room]], OPTIONS)
    assert len(text) <= 2 * room
    assert text[room - 1] != " " != text[room]
    assert whole == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize("kind", ["denoiser", "judge"])
def test_text_goes_on_up_to_its_end(kind, request):
    model = request.getfixturevalue(kind)
    [text] = generations(model, [("in the ", {"max_gen_toks": 8})], OPTIONS)
    assert 0 < len(text) <= 8
    [again] = generations(model, [("in the ", {"max_gen_toks": 8, "until": [text[3]]})], OPTIONS)
    assert again == text[: text.index(text[3])]
    drawn = [
        generations(model, [("in the ", {"temperature": 1.0})], Options(seed=seed, max_tokens=6))
        for seed in range(3)
    ]
    assert len({texts[0] for texts in drawn}) > 1


def test_the_adapter_speaks_the_harness_protocol(denoiser):
    """Oracle: the protocol as lm_eval.api.model.LM documents it; requests carry their arguments in `args`."""

    class Base:
        def __init__(self):
            self.ready = True

    lm = adapter(Base)(denoiser, OPTIONS)
    assert lm.ready
    assert isinstance(lm, Base)
    pairs = [("in th", "e"), ("and go", "d")]
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    assert lm.loglikelihood(asked) == log_likelihoods(denoiser, pairs, OPTIONS)
    assert lm.loglikelihood([]) == []
    [value] = lm.loglikelihood_rolling([SimpleNamespace(args=("in the",))])
    assert value < 0
    [text] = lm.generate_until([SimpleNamespace(args=("in the", {"until": ["\n"]}))])
    assert isinstance(text, str)


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="num_maskings must be positive"):
        Options(num_maskings=0)


def test_a_renamed_flag_is_answered_by_its_new_name():
    for module, old, new in (
        ("harness", "num_samples=8", "num_maskings"),
        ("evaluate", "precision=float32", "compute_dtype"),
    ):
        done = call(module, f"--{old}")
        assert done.status == 2
        assert f"--{new}" in done.stderr.splitlines()[-1]


def test_without_the_harness_it_says_what_to_install():
    done = call("harness", "--checkpoint=x", "--tasks=piqa")
    assert done.status == 1
    assert "pip install 'sdtt_jax[eval]'" in done.stderr
