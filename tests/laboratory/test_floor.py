"""The best factorised student. Oracles: a search over products of marginals, exact worlds, bounds."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import optimize, special

from sdtt_jax.errors import ConfigError
from sdtt_jax.laboratory.floor import SETTLED, find_floor, likely_sequences
from sdtt_jax.laboratory.law import make_layout, to_logits
from sdtt_jax.laboratory.optimum import round_optimum
from sdtt_jax.laboratory.record import Record, Truth
from sdtt_jax.laboratory.search import OBJECTIVES, SearchConfig, make_problem, search, single
from sdtt_jax.laboratory.world import World, finished_states

WORLD = World((0.5, 0.5), ((0.9, 0.1), (0.2, 0.8)), 3, (0.2, 0.4), name="weather")
CONFIG = SearchConfig(lbfgs_steps=30, adam_steps=60)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.of(WORLD)


@pytest.fixture(scope="module")
def rounds(truth: Truth) -> list[np.ndarray]:
    """SDTT's optima, round after round."""
    optima = [truth.teacher]
    for dt in WORLD.dts:
        optima.append(round_optimum(optima[-1], dt, "kl-bwd"))
    return optima[1:]


@pytest.fixture(scope="module")
def found(truth: Truth, rounds: list[np.ndarray]) -> Record:
    return find_floor(truth, (1, 2), {"kl-bwd": rounds[-1]}, (2,), CONFIG, print)


def test_no_teacher_and_no_round_is_below_the_floor(
    truth: Truth, rounds: list[np.ndarray], found: Record
) -> None:
    for calls, floor in found["floor"].items():
        assert list(floor) == list(OBJECTIVES)
        for student in (truth.teacher, *rounds):
            measures = truth.measures(student, (int(calls),))[calls]
            for objective in ("kl", "kl_reverse", "tv"):
                assert floor[objective][objective] < measures[objective] + 1e-6
            both = measures["kl"] + measures["kl_reverse"]
            assert floor["sum"]["kl"] + floor["sum"]["kl_reverse"] < both + 1e-6


def test_two_optimizers_agree_on_it_and_it_is_what_they_found(found: Record) -> None:
    for calls, by_objective in found["floor_search"].items():
        for objective, ends in by_objective.items():
            assert ends["lbfgs"] == pytest.approx(ends["adam"], abs=SETTLED)
            best = min(ends["lbfgs"], ends["adam"])
            measured = found["floor"][calls][objective]
            shares = zip(OBJECTIVES[objective], ("kl", "kl_reverse", "tv"), strict=True)
            value = sum(share * measured[name] for share, name in shares)
            assert value == pytest.approx(best, abs=1e-5)


def test_short_searches_go_on_until_the_optimizers_agree(truth: Truth) -> None:
    """With only one more search, from the best result, they are still 0.004 to 0.008 apart."""
    short = dataclasses.replace(CONFIG, lbfgs_steps=4, adam_steps=8)
    found = find_floor(truth, (2,), {}, (), short, print)
    for ends in found["floor_search"]["2"].values():
        assert ends["lbfgs"] == pytest.approx(ends["adam"], abs=SETTLED)


def test_at_one_call_it_is_the_best_product_of_marginals(truth: Truth, found: Record) -> None:
    """Oracle: KL on a grid of three probabilities, its best point refined by Nelder and Mead."""
    chain = truth.evidence[finished_states(WORLD)].reshape(2, 2, 2)

    def kl(first: np.ndarray) -> np.ndarray:  # [..., 3] probabilities of token 0
        a, b, c = (np.stack([p, 1 - p], axis=-1) for p in np.moveaxis(first, -1, 0))
        law = np.einsum("...i,...j,...k->...ijk", a, b, c)
        return special.rel_entr(law, chain).sum(axis=(-3, -2, -1))

    line = np.linspace(0.01, 0.99, 50)
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    refined = optimize.minimize(kl, grid[kl(grid).argmin()], method="Nelder-Mead", tol=1e-10)
    assert found["floor"]["1"]["kl"]["kl"] == pytest.approx(refined.fun, abs=1e-4)


def test_kl_of_the_language_at_one_call_is_least_at_its_own_marginals(
    truth: Truth, found: Record
) -> None:
    chain = truth.evidence[finished_states(WORLD)].reshape(2, 2, 2)
    sums = [chain.sum(axis=others, keepdims=True) for others in ((1, 2), (0, 2), (0, 1))]
    total_correlation = special.rel_entr(chain, math.prod(sums)).sum()
    got = found["floor"]["1"]["kl_reverse"]["kl_reverse"]
    assert got == pytest.approx(total_correlation, abs=1e-5)


def test_a_mixture_is_below_the_table_that_it_starts_from(found: Record) -> None:
    for calls, by_objective in found["mixtures"]["2"].items():
        mixed, alone = by_objective["sum"], found["floor"][calls]["sum"]
        assert mixed["kl"] + mixed["kl_reverse"] < 0.9 * (alone["kl"] + alone["kl_reverse"])


def test_one_token_after_the_other_there_is_no_floor(truth: Truth) -> None:
    """Oracle: the chain rule. All orders are equally likely and each group is one token."""
    layout = make_layout(2, 3)
    ways = np.array([0, 0, 0, 1 / math.factorial(3)])
    rng = np.random.default_rng(0)
    teacher = single(to_logits(layout, truth.teacher, 3))
    start = jax.tree.map(lambda a: a + rng.standard_normal(a.shape, np.float32), teacher)
    problem = make_problem(layout.paths, start, ways, truth.evidence[finished_states(WORLD)])
    assert search(problem, start, "sum", "lbfgs", CONFIG).value == pytest.approx(0, abs=1e-5)
    with pytest.raises(ConfigError, match="objective"):
        search(problem, start, "kl-bwd", "lbfgs", CONFIG)


def test_likely_sequences_are_far_apart(truth: Truth) -> None:
    first, second = likely_sequences(truth, 2)
    assert first.tolist() == [0, 0, 0]
    assert second.tolist() == [1, 1, 1]
    assert len(likely_sequences(truth, 9)) == 9


def test_a_world_that_is_too_large_is_one_sentence() -> None:
    uniform = tuple([1 / 16] * 16)
    truth = Truth(World(uniform, (uniform,) * 16, 5), *[np.empty(0)] * 3)
    with pytest.raises(ConfigError, match=r"39,135,393 steps between states"):
        find_floor(truth, (1,), {}, (), CONFIG, print)
