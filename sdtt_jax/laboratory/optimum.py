"""The optimum of one round of distillation, in closed form, on an enumerated world.

The target of a masked position is random: the teacher takes two reverse steps of size dt from
x_t. The first reveals each masked position with probability `r = min(1, dt / t)`, tokens drawn
independently from the teacher at x_t. A position's target is the teacher at x_t if that step
reveals it, else the teacher at the state after that step. The student sees neither t nor the
draw, so at each state and position it faces a distribution over targets: finitely many *atoms*,
each with a weight. The optimum minimises the expected divergence to the atoms:

=======  =============================  ============================================
name     expected divergence of q       optimum
=======  =============================  ============================================
kl-bwd   E sum q (log q - log p)        exp(E log p), normalised
kl-fwd   E sum p (log p - log q)        E p
mse      E sum (log q - log p)^2        log q - E log p = mu q, with mu from sum q = 1
tvd      E sum |q - p| / 2              the quantiles of one common level
log-l1   E sum |log q - log p|          medians, bent by sum q = 1
=======  =============================  ============================================

(p: target, E: over targets, sums over the vocabulary.)
Each function's docstring says how it is solved: from weights `[n, K]` and values `[n, K, V]` of the atoms to
probabilities `[n, V]`. NumPy float64 throughout.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import special

from sdtt_jax.config import choose
from sdtt_jax.laboratory.world import Array, all_states, outer_sum, states_by_pattern, strides

_MAX_ITERATIONS = 80
_ROOT_TOLERANCE = 1e-12


class Atoms(NamedTuple):
    """The distribution over targets of one position, for all states of one mask pattern."""

    states: Array  # [n] numbers of the states
    position: int
    weights: Array  # [n, K], sum to one over K
    values: Array  # [n, K, V], the targets


def subset_weights(length: int, masked: int, dt: float) -> Array:
    """Expected probability that the first step reveals exactly one given set of j positions: `[m + 1]`, by j.

    Given a state with m of L positions masked, t is Beta(m + 1, L - m + 1); the expectation of
    `r^j (1 - r)^(m - j)` with r = min(1, dt / t) is

        dt^j (1 - dt)^(L - j + 1) B(m - j + 1, L - m + 1) / B(m + 1, L - m + 1),

    plus P(t <= dt) at j = m, where the step reveals everything.
    """
    j = np.arange(masked + 1)
    rest = length - masked + 1
    ratio = special.beta(masked - j + 1, rest) / special.beta(masked + 1, rest)
    weights = dt**j * (1 - dt) ** (length - j + 1) * ratio
    weights[-1] += special.betainc(masked + 1, rest, dt)
    return np.asarray(weights)


def target_atoms(teacher: Array, dt: float) -> Iterator[Atoms]:
    """All targets that a position can get, with their probabilities, pattern by pattern.

    For m masked positions there are (V + 1)^(m - 1) atoms: each of the other masked positions
    stays masked or becomes one of V tokens. What the position itself would show after the step
    does not matter: if it is revealed its target is the teacher at x_t, which is also the atom of
    the empty step, so the weights of the two are added. Arguments are those of `round_optimum`.
    """
    _, length, size = teacher.shape
    step = strides(size, length)
    for masked, source in states_by_pattern(size, length):
        by_count = subset_weights(length, len(masked), dt)
        for position in masked:
            weights = np.ones((len(source), 1))
            shift = np.zeros(1, dtype=np.int64)
            count = np.zeros(1, dtype=np.int64)
            for other in masked:
                if other == position:
                    continue
                stays = np.ones((len(source), 1))
                drawn = np.concatenate([teacher[source, other], stays], axis=1)
                weights = (weights[:, :, None] * drawn[:, None, :]).reshape(len(source), -1)
                shift = outer_sum([shift, (np.arange(size + 1) - size) * step[other]])
                count = outer_sum([count, (np.arange(size + 1) < size).astype(int)])
            weights = weights * by_count[count]
            weights[:, -1] += 1 - weights.sum(axis=1)  # revealed now: the teacher at x_t
            yield Atoms(source, position, weights, teacher[source[:, None] + shift, position])


def round_optimum(teacher: Array, dt: float, divergence: str) -> Array:
    """The predictions of a student of unlimited capacity after one round.

    Args:
      teacher: [states, L, V] predictions, positive at masked positions, one-hot elsewhere, like the result.
      dt: step size of the two teacher steps, in (0, 1].
      divergence: one of `OPTIMA`.
    """
    choose("divergence", divergence, OPTIMA)
    solve = OPTIMA[divergence]
    optimum = teacher.copy()
    for atoms in target_atoms(teacher, dt):
        optimum[atoms.states, atoms.position] = solve(atoms.weights, atoms.values)
    return optimum


def expected_divergence(student: Array, teacher: Array, dt: float, divergence: str) -> Array:
    """The round's expected loss at each state and position: `[states, L]` nats, zero where unmasked.

    Args:
      student, teacher: `[states, L, V]` predictions, positive at masked positions.
      dt: step size of the two teacher steps, in (0, 1].
      divergence: one of `DIVERGENCES`.
    """
    choose("divergence", divergence, DIVERGENCES)
    loss = np.zeros(student.shape[:2])
    for atoms in target_atoms(teacher, dt):
        own = student[atoms.states, atoms.position][:, None, :]
        each = DIVERGENCES[divergence](own, atoms.values).sum(axis=-1)
        loss[atoms.states, atoms.position] = (atoms.weights * each).sum(axis=-1)
    return loss


def mean_kl(first: Array, second: Array, probabilities: Array) -> float:
    """KL(first || second), `[states, L, V]`, per masked position, nats, over states as masking makes them.

    `probabilities: [states]` are from `state_probabilities`.
    """
    kl = special.rel_entr(first, second).sum(axis=-1)
    return mean_over_masked(kl, probabilities, first.shape[-1])


def mean_over_masked(values: Array, probabilities: Array, vocab_size: int) -> float:
    """Mean of `values` [states, L] over masked positions, weighted by state probability, as in a loss."""
    masked = all_states(vocab_size, values.shape[1]) == vocab_size
    weight = probabilities[:, None] * masked
    return float((weight * values).sum() / weight.sum())


def geometric_mean(weights: Array, values: Array) -> Array:
    """`kl-bwd`: E sum q log(q / p) is KL(q || exp(E log p) / Z) - log Z, so q is the geometric mean."""
    return np.asarray(special.softmax(_mean_log(weights, values), axis=-1))


def arithmetic_mean(weights: Array, values: Array) -> Array:
    """`kl-fwd`: the cross-entropy of the mean target is least at the mean target."""
    return np.asarray((weights[:, :, None] * values).sum(axis=1))


def nearest_log_probs(weights: Array, values: Array) -> Array:
    """`mse`: the normalised log-probabilities nearest to a = E log p.

    E sum (y - log p)^2 is sum (y - a)^2 plus a constant, on the surface sum exp(y) = 1. There
    y - a = mu exp(y) with one mu for all tokens, and mu >= 0 because sum exp(a) <= 1 (a geometric
    mean). Given mu, the nearer of the two solutions is y = a - W0(-mu exp(a)), Lambert's W; it
    ends at y = a + 1, beyond which only the largest token may go, on the other branch (two
    tokens there would gain by moving apart). So y of the largest token is the unknown, from a to
    0: it gives mu, mu gives the others, and the sum is brought to one by Newton steps that fall
    back to bisection.
    """
    mean = _mean_log(weights, values)
    top = np.argmax(mean, axis=-1)[:, None]
    largest = np.take_along_axis(mean, top, axis=-1)

    low, high, candidate = largest, np.zeros_like(largest), largest
    for _ in range(_MAX_ITERATIONS):
        mu = (candidate - largest) * np.exp(-candidate)
        # rounding can push the argument of the largest token just past the branch point -1/e
        argument = np.maximum(-mu * np.exp(mean), -np.exp(-1.0))
        logs = mean - special.lambertw(argument).real
        np.put_along_axis(logs, top, candidate, axis=-1)
        probabilities = np.exp(logs)
        excess = probabilities.sum(axis=-1, keepdims=True) - 1
        if np.abs(excess).max() < _ROOT_TOLERANCE:
            break
        low, high = np.where(excess > 0, low, candidate), np.where(excess > 0, candidate, high)
        mu_slope = (1 - candidate + largest) * np.exp(-candidate)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = probabilities**2 / (1 - mu * probabilities) * mu_slope
            np.put_along_axis(slopes, top, np.exp(candidate), axis=-1)
            newton = candidate - excess / slopes.sum(axis=-1, keepdims=True)
        inside = (newton > low) & (newton < high)  # false for NaN
        candidate = np.where(inside, newton, (low + high) / 2)
    return _normalised(probabilities)


def common_quantiles(weights: Array, values: Array) -> Array:
    """`tvd`: the quantiles of the targets at one level, chosen so that they sum to one.

    E |q_v - p_v| is convex and piecewise linear in q_v with slope 2 F_v(q_v) - 1, F_v the
    distribution function of the targets' v-th entry. On the simplex all slopes are equal, that is
    q_v is a quantile of one common level tau (1/2, the medians, if those sum to one). The sum of
    the quantiles grows with tau from at most one to at least one, so tau is found by bisection. At
    that level the lower and the upper quantiles enclose the optimum; where they differ it need
    not be unique, and the point with sum one on the segment between the two is taken. In
    particular an atom of weight above one half keeps the teacher exactly as it is.
    """
    result, rows = _medians(weights, values)
    if not len(rows):
        return result
    ordered, cumulative = _distribution(weights[rows], values[rows])

    def too_high(level: Array) -> Array:
        return _quantiles(ordered, cumulative, level).sum(axis=-1) > 1

    low, high = _bisect(too_high, np.zeros(len(rows)), np.ones(len(rows)))
    lower = _quantiles(ordered, cumulative, low)
    width = _quantiles(ordered, cumulative, high) - lower
    missing = 1 - lower.sum(axis=-1, keepdims=True)
    total = width.sum(axis=-1, keepdims=True)
    share = np.clip(missing / np.where(total > 0, total, 1), 0, 1)
    result[rows] = _normalised(lower + share * width)
    return result


def bent_medians(weights: Array, values: Array) -> Array:
    """`log-l1`: the medians of the targets, moved as little as sum q = 1 asks for.

    E |y_v - log p_v| is convex and piecewise linear in y_v = log q_v, least at the median. If the
    medians sum to one they are the optimum; as for `tvd`, an atom of weight above one half keeps
    the teacher. If they sum to more, some must come down: sum exp(y) <= 1 is convex, so the
    optimum is where every slope 2 F_v(y_v) - 1 equals -lambda exp(y_v) for one lambda > 0; given
    lambda, y_v is an atom or lies between two on a piece of constant slope, y_v falls
    continuously with lambda, and lambda is found by bisection.

    If they sum to less, some must go up, and the problem is not convex: in q each piece is
    concave, so at the optimum all tokens but at most one are at atoms. `_raised` searches among
    such points by exchange between two tokens; nothing proves that it ends at the best of them
    (tests compare it with brute force). On Markov worlds of a few tokens the case does not arise.
    """
    result, rows = _medians(weights, values)
    over = rows[result[rows].sum(axis=-1) > 1]
    if len(over):
        result[over] = _lowered(*_distribution(weights[over], values[over]))
    under = rows[result[rows].sum(axis=-1) < 1 - _ROOT_TOLERANCE]
    for row in under:
        result[row] = _raised(result[row], weights[row], values[row])
    return _normalised(result)


def _lowered(ordered: Array, cumulative: Array) -> Array:
    """The convex case of `bent_medians`, for sorted targets: [n, V]."""
    below = np.concatenate([np.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], axis=1)

    def at(multiplier: Array) -> Array:
        # the first atom whose upper slope, 2 F - 1 + lambda q, is not negative stops the descent,
        # unless the piece before it already has slope zero
        lam = multiplier[:, None, None]
        index = (2 * cumulative - 1 + lam * ordered < 0).sum(axis=1, keepdims=True)
        index = np.minimum(index, ordered.shape[1] - 1)
        atom = np.take_along_axis(ordered, index, axis=1)
        inside = (1 - 2 * np.take_along_axis(below, index, axis=1)) / np.maximum(lam, 1e-300)
        return np.minimum(atom, inside)[:, 0]

    high = np.ones(len(ordered))
    while (short := at(high).sum(axis=-1) > 1).any():
        high = np.where(short, 2 * high, high)
    return at(_bisect(lambda m: at(m).sum(axis=-1) <= 1, np.zeros(len(ordered)), high)[1])


def _raised(medians: Array, weights: Array, values: Array) -> Array:
    """The case of `bent_medians` that is not convex, for one position: [V] -> [V]."""
    logs = np.sort(np.log(values), axis=0)
    sorted_weights = weights[np.argsort(values, axis=0)]
    # sums[0], sums[1]: weight, and weight times log-probability, of the first k atoms
    sums = np.cumsum([sorted_weights, sorted_weights * logs], axis=1)
    sums = np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)

    def costs(candidates: Array) -> Array:  # [c, V] -> [c], E |log q - log p| in O(log K)
        total = np.zeros(len(candidates))
        for v, own in enumerate(np.log(candidates).T):
            below = sums[:, np.searchsorted(logs[:, v], own), v]
            total += own * (2 * below[0] - sums[0, -1, v]) + sums[1, -1, v] - 2 * below[1]
        return total

    size = len(medians)
    starts = medians + (1 - medians.sum()) * np.eye(size)
    costs_of_starts = costs(starts)
    current, cost = starts[costs_of_starts.argmin()], costs_of_starts.min()
    while True:
        # one token goes to one of its atoms and another takes up the difference
        candidates = np.repeat(current[None], size * size * len(values), axis=0)
        moved, free, atom = np.indices((size, size, len(values))).reshape(3, -1)
        rows = np.arange(len(candidates))
        candidates[rows, moved] = values[atom, moved]
        candidates[rows, free] += current[moved] - values[atom, moved]
        candidates = candidates[(moved != free) & (candidates[rows, free] > 0)]
        following = costs(candidates)
        if following.min() > cost - _ROOT_TOLERANCE:
            return np.asarray(current)
        current, cost = candidates[following.argmin()], following.min()


def _medians(weights: Array, values: Array) -> tuple[Array, Array]:
    """Weighted medians for each token [n, V], and the rows where they do not sum to one."""
    medians = _quantiles(*_distribution(weights, values), np.full(len(values), 0.5))
    return medians, np.flatnonzero(np.abs(medians.sum(axis=-1) - 1) > _ROOT_TOLERANCE)


def _bisect(too_high: Callable[[Array], Array], low: Array, high: Array) -> tuple[Array, Array]:
    """The two ends, for each row, between which `too_high` becomes true."""
    for _ in range(_MAX_ITERATIONS):
        middle = (low + high) / 2
        over = too_high(middle)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return low, high


def _quantiles(ordered: Array, cumulative: Array, level: Array) -> Array:
    """The lower quantiles at one level per row: [n, V]."""
    index = (cumulative < level[:, None, None]).sum(axis=1, keepdims=True)
    return np.take_along_axis(ordered, np.minimum(index, ordered.shape[1] - 1), axis=1)[:, 0]


def _mean_log(weights: Array, values: Array) -> Array:
    return np.asarray((weights[:, :, None] * np.log(values)).sum(axis=1))


def _distribution(weights: Array, values: Array) -> tuple[Array, Array]:
    """Targets sorted for each token and their cumulative weights: two [n, K, V]."""
    order = np.argsort(values, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(weights[:, :, None], order, axis=1), axis=1)
    return np.take_along_axis(values, order, axis=1), cumulative / cumulative[:, -1:]


def _normalised(values: Array) -> Array:
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


# The optimum of a position's expected divergence, from its atoms.
OPTIMA: dict[str, Callable[[Array, Array], Array]] = {
    "kl-bwd": geometric_mean,
    "kl-fwd": arithmetic_mean,
    "mse": nearest_log_probs,
    "tvd": common_quantiles,
    "log-l1": bent_medians,
}

# The summands over the vocabulary, (student, target) -> same shape.
DIVERGENCES: dict[str, Callable[[Array, Array], Array]] = {
    "kl-bwd": special.rel_entr,
    "kl-fwd": lambda q, p: special.rel_entr(p, q),
    "mse": lambda q, p: np.square(np.log(q) - np.log(p)),
    "tvd": lambda q, p: np.abs(q - p) / 2,
    "log-l1": lambda q, p: np.abs(np.log(q) - np.log(p)),
}
