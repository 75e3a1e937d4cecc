"""Bounds of texts. Oracle: the integral itself, over all masks and 20,000 midpoints of log m."""

import dataclasses
import functools
import itertools
import types

import jax
import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.diffusion.estimators import ESTIMATORS, BoundConfig
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.evaluation.bootstrap import bootstrap, mean
from sdtt_jax.evaluation.likelihood import text_bounds
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import likelihood
from sdtt_jax.model import batches
from sdtt_jax.model.batches import join
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    as_causal,
    as_model,
    noisy_params,
    numbers,
    random_table,
)

TABLE = random_table(3)


@dataclasses.dataclass(frozen=True)
class TimedTable(TableDenoiser):
    """The time scale is a parameter, so that one program serves networks with and without time."""

    def hidden(self, params, tokens, sigma=None):
        return super().hidden(params, tokens) * (1 + params["scale"] * sigma)[:, None, None]


def timed(table, time_scale=0.0, schedule=None):
    params = {"table": table["table"], "scale": np.float32(time_scale)}
    return as_model(TimedTable(), params, schedule)


TEXTS = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
ROWS = np.tile(TEXTS, (8, 1))
KEYS = 40


@functools.cache
def _exact(time_scale):
    """Mean bound of all 27 texts, nats per token."""
    ends = np.asarray(
        make_schedule().move_chance(np.array([SAMPLING_EPS, 1.0], np.float32)), np.float64
    )
    edges = np.linspace(*np.log(ends), 20_001)
    m = np.exp((edges[1:] + edges[:-1]) / 2)
    scale = 1 + time_scale * -np.log1p(-m)
    table = np.asarray(TABLE["table"], np.float64)
    total = 0.0
    for count in range(1, LENGTH + 1):
        for masked in itertools.combinations(range(LENGTH), count):
            x_t = TEXTS.copy()
            x_t[:, masked] = MASK
            rows = table[np.asarray(numbers(x_t))][:, masked]
            own = np.take_along_axis(rows, TEXTS[:, masked, None], axis=2)[..., 0]
            logits = rows[..., None] * scale
            nll = np.log(np.exp(logits).sum(axis=2)) - own[..., None] * scale
            chance = m**count * (1 - m) ** (LENGTH - count)
            total += (nll.sum(axis=1).mean(axis=0) * chance).mean()
    return total * np.log(ends[1] / ends[0]) / LENGTH


def bounds(*arguments, batch_size):
    return join([batch() for batch in text_bounds(*arguments, batch_size=batch_size)])


# "counts" leaves out the ends that the schedule cuts off: a thousandth of the range.
SLACK = {"counts": 2e-3}


@functools.cache
def _estimates(estimator, time_scale=0.0, kind="log-linear"):
    schedule = make_schedule(ScheduleConfig(kind=kind))
    model = timed(TABLE, time_scale, schedule)
    config = BoundConfig(estimator, num_maskings=8)
    return np.stack(
        [
            bounds(model, ROWS, jax.random.key(seed), config, batch_size=64).nelbo
            for seed in range(KEYS)
        ]
    )


@pytest.mark.parametrize("time_scale", [0.0, 0.3], ids=["without time", "time-conditioned"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_estimator_has_the_exact_mean(estimator, time_scale):
    """216 texts × 8 maskings × 40 keys, in batches of 64, which do not divide the texts.

    Keys are independent, so the standard error comes from them, whether or not times in a batch are even.
    """
    exact = _exact(time_scale)
    means = _estimates(estimator, time_scale).mean(axis=(1, 2))
    error = means.std(ddof=1) / np.sqrt(KEYS)
    assert error < 0.01 * exact
    assert abs(means.mean() - exact) < 3.3 * error + SLACK.get(estimator, 0) * exact


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_exact_bound_lies_in_the_reported_interval(estimator):
    """The 95 % interval over texts, for 40 keys: fewer than 34 hits have probability 0.003.

    Times that are even over a batch make it too wide; independent times are the real test.
    """
    exact = _exact(0.0)
    hits = 0
    for estimates in _estimates(estimator):
        interval = bootstrap(mean, estimates.mean(axis=1), seed=0)
        hits += interval.low <= exact <= interval.high
    assert hits >= 34


@pytest.mark.parametrize("estimator", ["low-variance", "counts"])
def test_times_are_even_over_the_texts_whatever_fills_up_a_batch(estimator, monkeypatch):
    """6 texts and a batch of 4, of which a mesh of 16 computes 16 rows. Oracle: 4 texts, or the last 2, are
    1 / 4 or 1 / 2 of the length of 64 apart, modulo the length; and one device's own estimates."""
    network = Denoiser(DenoiserConfig(4, 64, num_layers=1, embed_dim=8, num_heads=2, cond_dim=8))
    model, texts = as_model(network, noisy_params(network, 0)), np.zeros((6, 64), np.int32)
    arguments = (model, texts, jax.random.key(0), BoundConfig(estimator))
    alone = bounds(*arguments, batch_size=4)
    first = alone.masked[:, 0]
    np.testing.assert_array_equal((first - first[0])[:4] % 64, [0, 16, 32, 48])
    assert (first[5] - first[4]) % 64 == 32
    monkeypatch.setattr(batches, "full_batch", lambda *_: 16)
    for one, other in zip(bounds(*arguments, batch_size=4), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_other_schedules_have_the_same_bound_for_a_network_without_time():
    exact = _exact(0.0)
    for estimator in ("antithetic", "low-variance"):
        means = _estimates(estimator, kind="cosine-squared").mean(axis=(1, 2))
        assert means.mean() == pytest.approx(exact, rel=0.02)


def test_variance_is_lowest_where_the_number_of_masked_tokens_is_spread():
    """Of the mean over 216 texts, between 40 keys: a standard error of 22 %.

    With 3 tokens, the choice of masked ones is most of it: "antithetic" saves 5 % (400 keys).
    """
    variance = {e: _estimates(e).mean(axis=(1, 2)).var(ddof=1) for e in ESTIMATORS}
    assert variance["low-variance"] < 0.5 * variance["antithetic"]
    assert variance["low-variance"] < 0.5 * variance["independent"]


def test_bound_lies_above_the_negative_log_likelihood():
    """For a model that is certain of the texts the bound is 0; otherwise it is positive."""
    certain = np.full((64, LENGTH, VOCAB), -50.0, np.float32)
    certain[:, :, 1] = 0.0
    # As many texts at once as above, for the same program.
    texts, config = np.ones((64, LENGTH), np.int32), BoundConfig("independent", num_maskings=8)
    model = timed({"table": certain})
    zero = bounds(model, texts, jax.random.key(0), config, batch_size=64)
    assert zero.nelbo.shape == zero.masked.shape == (64, 8)
    assert np.all(zero.nelbo == 0)
    assert np.any(zero.masked > 0)
    uniform = timed({"table": np.zeros((64, LENGTH, VOCAB), np.float32)})
    many = np.zeros((2_500, LENGTH), np.int32)
    # -log(1/3) at every masked position: n = 20,000, standard error about 0.01, seed 1.
    bound = bounds(uniform, many, jax.random.key(1), config, batch_size=64).nelbo.mean()
    assert bound == pytest.approx(np.log(3), abs=0.05)


def test_texts_of_any_lengths_weigh_as_much_as_they_have_tokens(monkeypatch, tmp_path):
    """A denoiser and a causal model of one law, on padded texts of 1 and of 5 tokens and an EOS.

    Oracle: the law's own nats, summed in NumPy and divided by the number of tokens; a token's law depends on
    nothing but the head's bias. Each text has one token over and over, so the mean over texts is another.
    """
    log_p = np.log([1e-6, 0.2, 0.7, 0.1 - 1e-6])
    texts = np.ones((24, 6), np.int32)
    texts[::2, 0], texts[1::2, :5] = 3, 2
    tokens = np.concatenate([[3, 1] * 12, [*5 * [2], 1] * 12])
    sizes = {"length": 6, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
    networks = (
        Denoiser(DenoiserConfig(4, cond_dim=8, **sizes)),
        CausalNetwork(CausalConfig(4, **sizes)),
    )

    def law(network):
        params = jax.tree.map(np.zeros_like, jax.device_get(noisy_params(network, 0)))
        params["head"]["linear"]["bias"][:4] = log_p
        return params

    tokenizer = types.SimpleNamespace(bos_id=0, eos_id=1, unk_id=None, digest="", normalize="none")
    made = (as_model, as_causal)
    model, causal = (
        dataclasses.replace(
            found := make(network, law(network)),
            tokenizer=tokenizer,
            facts=found.facts | {"sequences": "padded"},
        )
        for make, network in zip(made, networks, strict=True)
    )
    monkeypatch.setattr(likelihood, "held_out", lambda _: texts)
    monkeypatch.setattr(likelihood, "held_out_name", lambda _: "")
    settings = Settings(estimators=("counts",), num_maskings=256, batch_size=24)
    record = Record(tmp_path / "x.json", model.identity)
    likelihood.suite(Subject(model, settings, baseline=causal), record)
    bound, exact = (record.items[f"likelihood/{name}"] for name in ("counts", "autoregressive"))
    assert exact["nelbo"] == pytest.approx(-log_p[tokens].mean(), rel=1e-5)
    # The bound of a law without dependence is exact; only the draws of masks scatter it.
    assert bound["nelbo"] == pytest.approx(exact["nelbo"], abs=4 * bound["masking_error"])
    assert bound["masking_error"] < 0.02
    assert bound["nelbo_low"] < exact["nelbo"] < bound["nelbo_high"]


def test_a_baseline_with_other_tokens_reads_the_same_text(monkeypatch, tmp_path):
    """Oracle: nats of the text in its own ids, for each of the model's tokens; the ids are not the same."""
    config = TokenizerConfig(model_type="char", vocab_size=64)
    ours, theirs = (train_tokenizer(config, [text]) for text in ("abcdefgh", "0abcdefgh"))
    text = "abcd" + "efgh"
    rows, seen = np.stack([ours.encode(text)] * 2), np.stack([theirs.encode(text)] * 2)
    sizes = {"length": rows.shape[1], "num_layers": 1, "embed_dim": 8, "num_heads": 2}
    network = CausalNetwork(CausalConfig(theirs.vocab_size, **sizes))
    causal = as_causal(network, noisy_params(network, 0), theirs)
    expected = np.asarray(causal.score(seen)).mean() * seen.shape[1] / rows.shape[1]
    denoiser = Denoiser(DenoiserConfig(ours.vocab_size, cond_dim=8, **sizes))
    model = dataclasses.replace(as_model(denoiser, noisy_params(denoiser, 0)), tokenizer=ours)
    monkeypatch.setattr(likelihood, "held_out", lambda _: rows)
    monkeypatch.setattr(likelihood, "held_out_name", lambda _: "")
    settings = Settings(estimators=("counts",), num_maskings=1, batch_size=2)
    record = Record(tmp_path / "x.json", model.identity)
    likelihood.suite(Subject(model, settings, baseline=causal), record)
    found = record.items["likelihood/autoregressive"]["nelbo"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(np.asarray(causal.score(rows)).mean(), rel=1e-3)
