"""Continuations. Oracles: sums over all maskings of a table, golden values, one prefix after the other."""

import functools
import itertools
import math
from unittest import mock

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.cloze import choice_hits, scores
from sdtt_jax.evaluation.continuations import Choice, Continuation, RowLayout, lay_out
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import budget, schedule
from sdtt_jax.evaluation.suites.cloze import suite
from sdtt_jax.networks import CausalConfig
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.gpt2 import GPT2Config, GPT2Network
from tests.worlds import (
    MASK,
    VOCAB,
    TableDenoiser,
    as_causal,
    as_model,
    noisy_params,
    predictions,
    random_table,
    small_llama,
    tiny_network,
)

WORLD, TABLE = TableDenoiser(), random_table(40)
MODEL = as_model(WORLD, TABLE)
WHOLE = RowLayout()
BOS = 1
KEY, ONE = jax.random.key(0), BoundConfig("counts", 1)


def item(prefix, suffix):
    return Continuation(np.array(prefix, np.int32), np.array(suffix, np.int32))


def exact_bound(row, suffix):
    """The sum over every number m of masked suffix tokens and every choice of them, weight 1/m each.

    Args:
      row: three tokens.
      suffix: its positions.
    """
    table = predictions(WORLD, TABLE)
    total = 0.0
    for count in range(1, len(suffix) + 1):
        chosen = list(itertools.combinations(suffix, count))
        for masked in chosen:
            state = [MASK if i in masked else token for i, token in enumerate(row)]
            number = state[0] * 16 + state[1] * 4 + state[2]
            nll = -sum(math.log(table[number, i, row[i]]) for i in masked)
            total += nll / count / len(chosen)
    return total


ITEMS = [item([2], [0, 1]), item([0, 0], [2]), item([], [1, 2, 0])]
EXACT = [
    exact_bound([2, 0, 1], [1, 2]),
    exact_bound([0, 0, 2], [2]),
    exact_bound([1, 2, 0], [0, 1, 2]),
]


@pytest.mark.parametrize("estimator", ["independent", "antithetic", "low-variance", "counts"])
def test_bounds_are_the_sums_over_all_maskings(estimator):
    """20,000 maskings of each item, seed 0; the standard error is taken from ten parts of 2,000."""
    config = BoundConfig(estimator, 2_000)
    parts = np.stack(
        [
            scores(MODEL, ITEMS, jax.random.key(seed), config, WHOLE, batch_size=4_000).nll
            for seed in range(10)
        ]
    )
    error = parts.std(axis=0, ddof=1) / np.sqrt(10)
    # The schedule leaves a thousandth of the text clean at time 1.
    assert np.all(abs(parts.mean(axis=0) - EXACT) < 4 * error + 2e-3 * np.array(EXACT))
    assert np.all(error < 0.1)


def counted(items, layout=WHOLE, *, num_maskings=1, seed=0):
    """Bounds by the "counts" estimator, which is exact for one token."""
    config, key = BoundConfig("counts", num_maskings), jax.random.key(seed)
    return scores(MODEL, items, key, config, layout, batch_size=80).nll


def test_counts_need_one_masking_for_one_token():
    [bound] = counted([ITEMS[1]], seed=1)
    assert bound == pytest.approx(EXACT[1], rel=1e-5)


def test_maskings_of_an_item_lie_on_an_even_grid():
    """Two maskings of two tokens: one always masks both and the other masks one, so two values can occur."""
    table = predictions(WORLD, TABLE)
    both = table[2 * 16 + MASK * 4 + MASK]
    one = [-np.log(table[2 * 16 + MASK * 4 + 1, 1, 0]), -np.log(table[2 * 16 + 0 * 4 + MASK, 2, 1])]
    possible = [(-np.log(both[1, 0]) - np.log(both[2, 1]) + 2 * nll) / 2 for nll in one]
    bounds = np.concatenate([counted(ITEMS[:1], num_maskings=2, seed=seed) for seed in range(40)])
    found = [int(np.argmin(abs(bound - np.array(possible)))) for bound in bounds]
    np.testing.assert_allclose(bounds, np.array(possible)[found], rtol=1e-5)
    assert set(found) == {0, 1}


def bounds_of(items, batch_size, layout=WHOLE, **more):
    key, config = jax.random.key(3), BoundConfig("antithetic", 5)
    return scores(MODEL, items, key, config, layout, batch_size=batch_size, **more).nll


def test_values_depend_neither_on_batches_nor_on_the_items_beside():
    items = [ITEMS[i % 3] for i in range(7)]
    progress = mock.Mock()
    expected = bounds_of(items, 35, progress=progress)
    assert progress.update.call_args.args[0] == 35
    np.testing.assert_allclose(bounds_of(items, 4), expected, rtol=1e-5)
    np.testing.assert_allclose(bounds_of(items[:2], 4), expected[:2], rtol=1e-5)
    np.testing.assert_allclose(bounds_of(items[::-1], 4), expected[::-1], rtol=1e-5)
    np.testing.assert_allclose(bounds_of(items[2:3], 4), expected[2:3], rtol=1e-5)


@pytest.mark.parametrize(
    "network", [tiny_network(time_conditioned=True), small_llama(VOCAB, 8, shift=True)]
)
def test_a_denoiser_does_not_see_what_fills_its_rows(network):
    """So rows of several lengths share a program. Oracle: each at its own length."""
    model = as_model(network, noisy_params(network, 5))
    items = [item([0], [1, 2]), item([], [2, 0]), item([1, 1, 0, 2], [0])]
    filled, own = RowLayout(multiple=8), RowLayout()
    assert [len(lay_out(items, each, MASK)) for each in (filled, own)] == [1, 3]
    config = BoundConfig("counts", 4)
    found = [scores(model, items, KEY, config, each, batch_size=9) for each in (filled, own)]
    np.testing.assert_allclose(*(each.nll for each in found), rtol=1e-4)
    np.testing.assert_array_equal(*(each.greedy for each in found))


def test_longer_rows_are_not_filled():
    """They would take attention within segments, for which a GPU holds all scores."""
    layout = RowLayout(multiple=8, most_filled=10)
    items = [item([0] * n, [1]) for n in (3, 9, 10, 12)]
    assert [rows.tokens.shape[1] for rows in lay_out(items, layout, MASK)] == [8, 11, 13, 16]


def test_groups_of_several_lengths_come_back_in_order():
    """A real network, which sees the time that belongs to a count. Oracle: each item alone."""
    network = tiny_network(time_conditioned=True)
    model = as_model(network, noisy_params(network, 5))
    items = [item([0], [1, 2]), item([], [2, 0]), item([1, 1], [0]), item([2], [1])]
    config = BoundConfig("counts", 4)
    call = functools.partial(scores, model, key=KEY, config=config, layout=WHOLE, batch_size=4)
    together = call(items).nll
    for index in (2, 3):
        alone = call([*items[:index], items[index]]).nll[index]
        assert together[index] == pytest.approx(alone, rel=1e-5)


def test_bos_and_a_visible_eos_stand_around_the_text():
    """[2] 0 1 in the table's world, with BOS 2 and EOS 1: only 0 is scored, so one exact term is left."""
    [bound] = counted([item([], [0])], RowLayout(bos_id=2, eos_id=1))
    assert bound == pytest.approx(exact_bound([2, 0, 1], [1]), rel=1e-5)


def test_too_long_a_prefix_loses_its_beginning():
    short = bounds_of([item([2, 0], [1])], 4)
    cut = bounds_of([item([1, 1, 0, 2, 0], [1])], 4, RowLayout(max_length=3))
    np.testing.assert_array_equal(cut, short)


def test_filled_rows_score_the_suffix_only():
    """Two tokens in a row of three: the position after them is masked and not scored."""
    [bound] = counted([item([2], [0])], RowLayout(multiple=3))
    table = predictions(WORLD, TABLE)[2 * 16 + MASK * 4 + MASK]
    assert bound == pytest.approx(-np.log(table[1, 0]), rel=1e-5)


def test_greedy_hits_are_texts_that_the_denoiser_fills_in_itself():
    best = predictions(WORLD, TABLE)[2 * 16 + MASK * 4 + MASK].argmax(axis=-1)
    right = [best[1], best[2]]
    items = [item([2], right), item([2], [right[0], (right[1] + 1) % 3])]
    hits = scores(MODEL, items, KEY, ONE, WHOLE, batch_size=3).greedy
    assert hits.tolist() == [True, False]


@pytest.fixture(scope="module")
def causal():
    model = CausalNetwork(
        CausalConfig(vocab_size=5, length=8, num_layers=1, embed_dim=8, num_heads=2)
    )
    return as_causal(model, noisy_params(model, 2, spread=0.7))


def next_token(model, text):
    """Log-probabilities after a text that stands alone at the beginning of a row of eight."""
    row = np.zeros((1, 8), np.int32)
    row[0, : len(text)] = text
    return np.asarray(model.log_probs(row))[0, len(text) - 1]


@pytest.mark.parametrize("multiple", [1, 16])
def test_causal_likelihood_is_the_product_over_prefixes(causal, multiple):
    items = [item([3, 0, 1], [2]), item([], [4, 1]), item([1], [2, 2, 0])]
    layout = RowLayout(bos_id=BOS, multiple=multiple)
    found = scores(causal, items, KEY, ONE, layout, batch_size=2)
    assert found.nll.dtype == np.float64
    for (prefix, suffix), nll in zip(items, found.nll, strict=True):
        expected, text = 0.0, [BOS, *prefix]
        for token in suffix.tolist():
            expected -= next_token(causal, text)[token]
            text.append(token)
        assert nll == pytest.approx(expected, rel=1e-4)


def test_causal_greedy_is_what_decoding_writes(causal):
    prompt = np.array([[BOS, 3, 0]])
    [write] = causal.batches(jax.random.key(0), prompt, 3, temperature=0.0)
    decoded = write().tokens
    right = np.asarray(decoded)[0, 3:].tolist()
    wrong = [*right[:2], (right[2] + 1) % 5]
    items = [item([3, 0], right), item([3, 0], wrong)]
    layout = RowLayout(bos_id=BOS, multiple=16)
    found = scores(causal, items, KEY, ONE, layout, batch_size=2)
    assert found.greedy.tolist() == [True, False]


def test_a_causal_row_uses_every_position_of_the_network():
    """Four positions: BOS and three tokens are read, a fourth is predicted; more is cut from the left."""
    model = GPT2Network(GPT2Config(vocab_size=6, length=4, num_layers=1, embed_dim=8, num_heads=2))
    model = as_causal(model, noisy_params(model, 0))
    layout = RowLayout(bos_id=BOS, multiple=16)
    items = [item([0, 2], [3, 4]), item([5, 5, 0, 2], [3, 4])]
    full, cut = scores(model, items, KEY, ONE, layout, batch_size=2).nll
    assert full == cut
    with pytest.raises(ConfigError, match="suffix of item 0 has 5 tokens, too many"):
        scores(model, [item([], [2] * 5)], KEY, ONE, layout, batch_size=1)


CHOICES = [
    Choice("a", (" bb", " a much longer ending"), 0),
    Choice("a", (" bb", " a much longer ending"), 1),
    Choice(("x", "y", "z"), (" tail", " tail", " tail"), 2),
]


def test_choices_by_likelihood_plain_and_for_each_character():
    """2 nats for 2 characters against 5 for 20: the first is likelier, the second likelier per character."""
    hits = choice_hits(CHOICES, np.array([2.0, 5.0, 2.0, 5.0, 3.0, 2.0, 1.0]))
    assert hits.plain.tolist() == [True, False, True]
    assert hits.normalised.tolist() == [False, True, True]


def test_only_the_space_before_an_ending_is_none_of_its_characters():
    """HellaSwag's "[substeps] bb" becomes " bb". Oracle: the harness's `len(choice)`, 3 and 1."""
    hits = choice_hits([Choice("a", ("  bb", " c"), 0)], np.array([2.9, 0.98]))
    assert hits.normalised.tolist() == [True]


def test_a_choice_lists_its_endings_after_their_contexts():
    assert [(c.prefix, c.suffix) for c in CHOICES[2].clozes()] == [
        ("x", " tail"),
        ("y", " tail"),
        ("z", " tail"),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds_of([], 4), "no items"),
        (lambda: bounds_of([item([1], [])], 4), "item 0 has no suffix"),
        (lambda: bounds_of(ITEMS, 0), "batch_size must be positive"),
        (lambda: bounds_of(ITEMS, 4, RowLayout(max_length=2)), "item 2 has 3 tokens, too many"),
        (lambda: RowLayout(multiple=0), "multiple must be positive"),
        (lambda: Choice("a", ("b",), 1), "not one of the 1 endings"),
        (lambda: Choice(("a",), ("b", "c"), 1), "1 contexts for 2 endings"),
        (lambda: choice_hits(CHOICES, np.zeros(3)), "3 values for 7 endings"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


class Coupled(TableDenoiser):
    """A denoiser that is a function of noise."""

    noise_kind = "full"


STUDENT = as_model(Coupled(), TABLE)
ROW = np.array([[2, MASK, 0]], np.int32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: scores(STUDENT, ITEMS, KEY, ONE, WHOLE, batch_size=4),
        lambda: budget.prompt_features(STUDENT, ROW, 1),
        lambda: budget.check(Subject(STUDENT, Settings())),
        lambda: schedule.check(Subject(STUDENT, Settings(held_out="wikitext2"))),
        lambda: STUDENT.logits(ROW),
        lambda: STUDENT.log_probs(ROW),
        lambda: STUDENT.score(ROW % MASK, jax.random.key(0)),
    ],
    ids=["scores", "features", "budget", "schedule", "logits", "log_probs", "score"],
)
def test_a_function_of_noise_has_no_probabilities(call):
    with pytest.raises(ConfigError, match="is a function of its noise and has no likelihood"):
        call()


def test_the_suite_says_that_a_function_of_noise_has_no_likelihood(tmp_path):
    task, told = tmp_path / "task.jsonl", []
    task.write_text('{"text": "a b"}\n')
    record = Record(tmp_path / "out.json", {}, told.append)
    suite(Subject(STUDENT, Settings(task_file=str(task))), record)
    assert (told, record.items) == (["  lambada: none, the model is a function of its noise"], {})


def test_a_causal_network_needs_bos_and_sees_no_eos(causal):
    cases = [(RowLayout(), "needs layout.bos_id"), (RowLayout(BOS, BOS), "set layout.eos_id=None")]
    for layout, message in cases:
        with pytest.raises(ConfigError, match=message):
            scores(causal, ITEMS, KEY, ONE, layout, batch_size=1)
