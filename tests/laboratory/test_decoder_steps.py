"""Decoders that make calls of their own. Oracles: the helper's law of one token at a time, summed over all
orders; the sampler itself; the definitions, token by token.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.decoders.speculative import relaxed
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.laboratory.decoders import decoder_law
from tests.statistics import assert_fits
from tests.worlds import LENGTH, MASK, VOCAB, TableDenoiser, all_states, predictions, random_table

NETWORK, PARAMS, OTHER = TableDenoiser(), random_table(1), random_table(2)
TEXTS = list(itertools.product(range(VOCAB), repeat=LENGTH))
NUMBER = {tuple(state): n for n, state in enumerate(all_states().tolist())}
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))


def table(params):
    """The predictions of a table, one-hot at unmasked positions."""
    shown = all_states()[:, :, None] == np.arange(VOCAB)
    masked = (all_states() == MASK)[:, :, None]
    return np.where(masked, predictions(NETWORK, params), shown)


OWN, THEIRS = table(PARAMS), table(OTHER)


def one_at_a_time(table, orders):
    """The law of writing one token at a time, when each of the orders is equally likely."""
    law = np.zeros(len(TEXTS))
    for order, (index, text) in itertools.product(orders, enumerate(TEXTS)):
        state, chance = [MASK] * LENGTH, 1 / len(orders)
        for position in order:
            chance *= table[NUMBER[tuple(state)], position, text[position]]
            state[position] = text[position]
        law[index] += chance
    return law


class Causal:
    """A causal network that predicts at each position as the table does with the rest masked."""

    config = type("Config", (), {"vocab_size": VOCAB})

    def hidden(self, params, tokens):
        states = jnp.stack(
            [
                jnp.where(jnp.arange(LENGTH) < i, jnp.roll(tokens, -1, axis=1), MASK)
                for i in range(LENGTH)
            ]
        )
        rows = [NETWORK.hidden(params, states[i])[:, i] for i in range(LENGTH)]
        return jnp.stack(rows, axis=1)

    head_params, logits = NETWORK.head_params, NETWORK.logits


class EveryOther:
    """A causal network of tokens 0 and 2 that predicts as the table does with 1 masked."""

    config = Causal.config

    def hidden(self, params, tokens):
        first = jnp.where(jnp.arange(LENGTH) < 1, tokens[:, 1:2], MASK)
        states = jnp.full_like(first, MASK), first
        rows = [NETWORK.hidden(params, states[i])[:, 2 * i] for i in range(2)]
        return jnp.stack(rows, axis=1)

    def apart(self, params):
        return params

    def init_cache(self, batch, length):
        return jnp.zeros((batch, length), jnp.int32), jnp.int32(0)

    def decode(self, params, tokens, cache):
        seen, place = cache
        seen = seen.at[:, place].set(tokens[:, 0])
        return self.hidden(params, seen)[:, place][:, None], (seen, place + 1)

    head_params, logits = NETWORK.head_params, NETWORK.logits


def helper(causal):
    if causal is None:
        return None
    if causal == "skeleton":
        return Helper(OTHER, EveryOther(), 0)
    return Helper(OTHER, Causal(), 0) if causal else Helper(OTHER, NETWORK)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_without_relaxation_a_draft_changes_nothing_of_the_verifiers_law(causal, window):
    orders = [tuple(range(LENGTH))] if causal else list(itertools.permutations(range(LENGTH)))
    law, calls = decoder_law(OWN, f"speculative:window={window}", 3, THEIRS, causal=causal)
    np.testing.assert_allclose(law, one_at_a_time(THEIRS, orders), atol=1e-12)
    assert calls == 6 if window == 1 else 2 < calls < 6


@pytest.mark.parametrize(
    ("mode", "causal", "steps"),
    [
        ("speculative:window=2", True, 2),
        ("speculative:window=2,relaxation=0.3", False, 2),
        ("staged:until=0.33/0.67", False, 3),
        ("energy:candidates=2", True, 2),
        ("skeleton:every=2", "skeleton", 2),
        ("refine:rounds=2,window=2,threshold=0.3", None, 4),
        ("blocks:length=1,cache=none", None, 3),
        ("blocks:length=3,cache=none,score=margin", None, 2),
        ("blocks:length=3,cache=none,score=probability,threshold=0.5", None, 2),
        ("remdm:eta=0.8,rule=forward-backward", None, 3),
        ("remdm:eta=0.5,loop=0.5,still=0.3", None, 6),
    ],
)
def test_the_law_is_what_the_sampler_draws(mode, causal, steps):
    """n = 100,000, standard error of a frequency at most 1.6e-3, seed 3."""
    diffusion, x_init = (
        MaskedDiffusion(NETWORK, make_schedule()),
        prior_sample(100_000, LENGTH, MASK),
    )
    config = SamplerConfig(steps, mode=mode)
    state, _ = _sample(diffusion, PARAMS, jax.random.key(3), x_init, config, helper=helper(causal))
    texts = np.asarray(state.x) @ VOCAB ** np.arange(LENGTH - 1, -1, -1)
    law, _ = decoder_law(OWN, mode, steps, THEIRS, causal=bool(causal))
    assert_fits(np.bincount(texts, minlength=VOCAB**LENGTH), law)


def test_a_token_borrows_from_its_nearest_neighbours_as_far_as_the_budget_goes():
    p, distance = np.log(np.float32([0.1, 0.4, 0.2, 0.3])), np.float32([0.0, 3.0, 1.0, 2.0])
    borrowed = jax.jit(lambda budget: jnp.exp(relaxed(p, 0, distance, budget)))
    for budget, expected in (
        (0.1, [0.1, 0.4, 0.2, 0.3]),
        (0.25, [0.3, 0.4, 0.0, 0.3]),
        (0.55, [0.6, 0.4, 0.0, 0.0]),
    ):
        np.testing.assert_allclose(borrowed(budget), expected, atol=1e-6)


def test_the_nearest_neighbours_are_found_without_a_sort():
    """Oracle: a stable sort and an exact sum along it. Distances tie, and rounding takes some below 0."""
    rng = np.random.default_rng(0)
    distance = np.float32(rng.integers(-1, 6, (64, 40)) / 8)
    distance[distance == 0] *= rng.choice([-1.0, 1.0], (distance == 0).sum())  # 0 and -0 are equal
    count, drafted = rng.multinomial(256, np.full(40, 1 / 40), 64), rng.integers(0, 40, 64)
    p = np.log(np.maximum(count / 256, 1e-37)).astype(np.float32)
    run = jax.jit(relaxed).lower(p, drafted, distance, np.float32(0)).compile()
    assert " sort(" not in run.as_text()
    for budget in (0, 64, 180, 255):  # in 256ths; half a one more keeps rounding from deciding
        found = np.exp(run(p, drafted, distance, np.float32((budget + 0.5) / 256)))
        for row, own, far, odds in zip(found, drafted, distance, count, strict=True):
            order = np.argsort(far, kind="stable")
            order = order[order != own]
            lent = order[np.cumsum(odds[order]) <= budget]
            expected = odds / 256
            expected[own] += expected[lent].sum()
            expected[lent] = 0
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_relaxation_leaves_the_verifiers_law_for_fewer_calls():
    exact, calls = decoder_law(OWN, "speculative:window=3", 3, THEIRS)
    loose, fewer = decoder_law(OWN, "speculative:window=3,relaxation=0.3", 3, THEIRS)
    assert loose.sum() == pytest.approx(1)
    assert 0.01 < np.abs(loose - exact).sum() / 2 < 0.9  # at most 0.3 per token
    assert fewer < calls


def drawn_at(law, table, places_of):
    """Draws the places of every text anew and independently, text by text and token by token."""
    after = {}
    for state, weight in law.items():
        places = places_of(state)
        known = tuple(MASK if i in places else token for i, token in enumerate(state))
        for tokens in itertools.product(range(VOCAB), repeat=len(places)):
            text, value = list(known), weight
            for place, token in zip(places, tokens, strict=True):
                text[place], value = token, value * table[NUMBER[known], place, token]
            after[tuple(text)] = after.get(tuple(text), 0.0) + value
    return after


def shuffled(table_of, counts):
    """The law of revealing `counts` positions at the calls, when all orders are equally likely."""
    law = {}
    for order in itertools.permutations(range(LENGTH)):
        now, done = {(MASK,) * LENGTH: 1 / 6}, 0
        for call, count in enumerate(counts):
            due = order[done : done + count]
            now = drawn_at(now, table_of(call), lambda _, due=due: due)
            done += count
        for text, weight in now.items():
            law[text] = law.get(text, 0.0) + weight
    return law


def test_stages_are_each_drawn_from_the_model_whose_turn_it_is():
    """Three calls of one token each; the first two thirds are the model's own."""
    law, calls = decoder_law(OWN, "staged:until=0.67", 3, THEIRS)
    exact = shuffled(lambda call: OWN if call < 2 else THEIRS, (1, 1, 1))
    np.testing.assert_allclose(law, [exact[text] for text in TEXTS], atol=1e-12)
    assert calls == 3


def test_a_turn_may_come_back():
    """Three calls of one token each; the second is the helper's."""
    law, _ = decoder_law(OWN, "staged:until=0.33/0.67", 3, THEIRS)
    exact = shuffled(lambda call: THEIRS if call == 1 else OWN, (1, 1, 1))
    np.testing.assert_allclose(law, [exact[text] for text in TEXTS], atol=1e-12)


def test_a_helper_plans_every_other_token_in_order_and_the_rest_is_filled():
    law, calls = decoder_law(OWN, "skeleton:every=2", 2, THEIRS)
    exact = {(MASK,) * LENGTH: 1.0}
    for place, table in ((0, THEIRS), (2, THEIRS), (1, OWN)):
        exact = drawn_at(exact, table, lambda _, place=place: (place,))
    np.testing.assert_allclose(law, [exact[text] for text in TEXTS], atol=1e-12)
    assert calls == 3


def test_what_the_rest_makes_improbable_is_drawn_again_a_window_at_a_time():
    mode, threshold = "refine:rounds=2,window=2,threshold=0.3", 0.3
    law, _ = decoder_law(OWN, mode, 4)
    exact = shuffled(lambda _: OWN, (2, 1))
    for window in ((0, 1), (2, 0)):

        def doubted(text, window=window):
            left_out = {i: (*text[:i], MASK, *text[i + 1 :]) for i in window}
            return sorted(i for i in window if OWN[NUMBER[left_out[i]], i, text[i]] < threshold)

        exact = drawn_at(exact, OWN, doubted)
    np.testing.assert_allclose(law, [exact[text] for text in TEXTS], atol=1e-7)


def test_of_two_candidates_one_is_picked_by_its_energy():
    """One call for everything: a sum over pairs of texts, one of which is picked in proportion to exp(-E)."""
    causal = one_at_a_time(THEIRS, [tuple(range(LENGTH))])
    own = one_at_a_time(OWN[-1:].repeat(len(OWN), axis=0), [tuple(range(LENGTH))])
    exact = np.zeros(len(TEXTS))
    for first, second in itertools.product(range(len(TEXTS)), repeat=2):
        weights = np.array([causal[i] / own[i] for i in (first, second)])
        for index, weight in zip((first, second), weights / weights.sum(), strict=True):
            exact[index] += own[first] * own[second] * weight
    law, calls = decoder_law(OWN, "energy:candidates=2", 1, THEIRS, causal=True)
    np.testing.assert_allclose(law, exact, atol=1e-12)
    assert calls == 2
    # The sign: what the causal model likes is written more often than without it.
    assert law @ np.log(causal) > own @ np.log(causal) + 0.1
