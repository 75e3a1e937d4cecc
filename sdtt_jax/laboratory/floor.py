"""How good samples can be at all when tokens that are revealed together are drawn independently.

Whatever loss trained it, a student whose tokens are independent given a partly masked text is a
table of predictions. Here the table itself is optimised, so that the exact law of its samples at
n calls is as near to the language as a table can bring it: the floor under SDTT and under every
other distiller of such students. A mixture of K tables, one of which is drawn for each text, can
come nearer; its floor is computed too.

The problem is not convex. At one call the symmetric table is a saddle of KL(samples || chain), and
the best table at two calls leans towards one of many sequences that are equally likely. So the
search starts from several tables, and two optimizers must agree on the best.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from sdtt_jax.config import require
from sdtt_jax.laboratory.law import StateLayout, make_layout, to_logits, to_predictions
from sdtt_jax.laboratory.record import Log, Record, Truth
from sdtt_jax.laboratory.search import (
    OBJECTIVES,
    OPTIMIZERS,
    Problem,
    SearchConfig,
    SearchEnd,
    TableMixture,
    make_problem,
    search,
    single,
)
from sdtt_jax.laboratory.world import (
    Array,
    all_states,
    finished_states,
    reveal_sums,
    reveal_ways,
    sample_distribution,
)
from sdtt_jax.progress import Progress, make_progress

MIXTURE_OBJECTIVE = "sum"
SETTLED = 1e-3  # how far apart the best values of the two optimizers may be
# Reveals of one call, (2V + 1)^L: a world of this size takes most of an hour and some GiB.
MAX_PAIRS = 10_000_000
_MOST_WORKERS = 8  # each search holds tens of MiB
_ADAM_LEAVES_OUT = ("perturbed", "random")  # at several calls: worse starts that take as long
_AGAIN = 6  # how often, at most, both optimizers continue from the best table of all
_LEANING = 2.0  # added to the logits of one sequence at the fully masked state
_NOISE = 1.0  # standard deviation of what is added to all logits of a perturbed or random start
_LONGER = 4  # times as many steps at one call, where they cost nothing


class SearchJob(NamedTuple):
    """One search."""

    start: str
    objective: str
    optimizer: str


Ends = dict[SearchJob, SearchEnd]  # where searches ended
_MIXTURE_JOBS = [SearchJob(start, MIXTURE_OBJECTIVE, "lbfgs") for start in ("leaning", "floor")]


def find_floor(
    truth: Truth,
    calls: Sequence[int],
    optima: Mapping[str, Array],
    components: Sequence[int],
    config: SearchConfig,
    log: Log,
) -> Record:
    """The best table, and the best mixtures of tables, for each number of calls, in a small world.

    Args:
      calls: numbers of the sampler's calls, each at least 1.
      optima: tables of predictions `[states, L, V]` to start from, in addition to the teacher.
      components: sizes of mixtures, each at least 2.
      config: the search.
      log: called with a line for each number of calls.

    Returns:
      `floor`, the measures of the best table by calls and objective; `mixtures`, those of the best
      mixture by size, calls and objective; `floor_search`, by calls and objective: the best value of
      each optimizer, and the value that it reached from each start.
    """
    world = truth.world
    pairs = (2 * world.vocab_size + 1) ** world.length
    require(
        pairs <= MAX_PAIRS,
        f"The world is too large for a floor: {world.vocab_size} tokens and length {world.length} "
        f"are {pairs:,} steps between states (at most {MAX_PAIRS:,}). Take a smaller vocabulary or "
        "length.",
    )
    layout = make_layout(world.vocab_size, world.length)
    tables = _different({"teacher": truth.teacher, **optima})
    names = (*tables, "leaning", "perturbed", "random")
    jobs = {n: _jobs((*names, "leaning more") if n == 1 else names, n) for n in calls}
    costs = {
        n: len(jobs[n]) + len(OBJECTIVES) * len(OPTIMIZERS) + len(_MIXTURE_JOBS) * sum(components)
        for n in calls
    }
    total = sum(_groups(truth, n) * cost for n, cost in costs.items())
    record: Record = {"floor": {}, "mixtures": {str(k): {} for k in components}, "floor_search": {}}
    with (
        make_progress("floor", total) as bar,
        ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_WORKERS)) as pool,
    ):
        bar.update(0)
        searches = _Searches(truth, layout, config, pool, bar)
        for n in calls:
            ends, best = _best_tables(searches, n, tables, jobs[n])
            record["floor"][str(n)] = {
                o: _measures(searches, n, found.mixture) for o, found in best.items()
            }
            record["floor_search"][str(n)] = {o: _search_record(ends, o) for o in OBJECTIVES}
            log(_line(n, record))
            for size in components:
                starts = _mixture_starts(searches, n, size, best[MIXTURE_OBJECTIVE])
                ends = searches.run(searches.problem(n, starts), n, starts, _MIXTURE_JOBS)
                found = _best(ends, MIXTURE_OBJECTIVE)
                record["mixtures"][str(size)][str(n)] = {
                    MIXTURE_OBJECTIVE: _measures(searches, n, found.mixture)
                }
    return record


@dataclasses.dataclass
class _Searches:
    """Runs searches side by side, and shows their progress.

    The cost of a search grows with the number of groups that are revealed and with the number of tables.
    """

    truth: Truth
    layout: StateLayout
    config: SearchConfig
    pool: ThreadPoolExecutor
    bar: Progress
    done: int = 0

    def problem(self, n: int, starts: Mapping[str, TableMixture]) -> Problem:
        """The objective at n calls, for mixtures of as many tables as the starts have."""
        ways = reveal_ways(n, self.truth.world.length)[: _groups(self.truth, n) + 1]
        return make_problem(self.layout.paths, starts["leaning"], ways, self.truth.chain)

    def run(
        self,
        problem: Problem,
        n: int,
        starts: Mapping[str, TableMixture],
        jobs: Sequence[SearchJob],
        *,
        planned: bool = True,
    ) -> Ends:
        """Where each job ends; jobs that were not planned do not count as progress."""
        longer = _LONGER if n == 1 else 1
        steps = dataclasses.replace(
            self.config,
            lbfgs_steps=longer * self.config.lbfgs_steps,
            adam_steps=longer * self.config.adam_steps,
        )
        ends = self.pool.map(
            lambda job: search(problem, starts[job.start], job.objective, job.optimizer, steps),
            jobs,
        )
        found = {}
        for job, end in zip(jobs, ends, strict=True):
            found[job] = end
            self.done += planned * _groups(self.truth, n) * len(end.mixture.shares)
            self.bar.update(self.done, {})
        return found


def _best_tables(
    searches: _Searches, n: int, tables: Mapping[str, Array], jobs: Sequence[SearchJob]
) -> tuple[Ends, dict[str, SearchEnd]]:
    """Where all searches at n calls ended, and the best of them for each objective."""
    starts = _starts(searches, n, tables)
    problem = searches.problem(n, starts)
    ends = searches.run(problem, n, starts, jobs)
    # Both optimizers continue from the best table that any search has found for an objective, until they
    # agree. A search returns no worse table than its start, so they differ only by what one of them still
    # gained.
    sought = tuple(OBJECTIVES)
    for number in range(_AGAIN):
        first = {o: _best(ends, o) for o in OBJECTIVES}
        measured = {o: _measures(searches, n, first[o].mixture) for o in OBJECTIVES}
        again = [
            SearchJob(f"best {_nearest(measured, o)}", o, name)
            for o in sought
            for name in OPTIMIZERS
        ]
        bests = {f"best {o}": first[o].mixture for o in OBJECTIVES}
        ends |= searches.run(problem, n, bests, again, planned=number == 0)
        sought = tuple(o for o in OBJECTIVES if _apart(_search_record(ends, o)) > SETTLED)
        if not sought:
            break
    return ends, {o: _best(ends, o) for o in OBJECTIVES}


def _apart(found: Record) -> float:
    """How far apart the best values of the two optimizers are."""
    lbfgs, adam = (found[name] for name in OPTIMIZERS)
    return abs(float(lbfgs) - float(adam))


def _groups(truth: Truth, n: int) -> int:
    """The most groups in which n calls reveal a text."""
    return min(n, truth.world.length)


def _jobs(starts: Sequence[str], calls: int) -> list[SearchJob]:
    return [
        SearchJob(start, objective, optimizer)
        for objective in OBJECTIVES
        for start in starts
        for optimizer in OPTIMIZERS
        if calls == 1 or optimizer != "adam" or start not in _ADAM_LEAVES_OUT
    ]


def _nearest(measured: Mapping[str, Record], objective: str) -> str:
    """The objective whose best table is best for `objective`."""
    shares = dict(zip(("kl", "kl_reverse", "tv"), OBJECTIVES[objective], strict=True))
    return min(measured, key=lambda o: sum(shares[name] * measured[o][name] for name in shares))


def likely_sequences(truth: Truth, count: int) -> Array:
    """The likeliest sequences of the language that are far apart, the likeliest first: `[count, L]`.

    Each differs from all before it at more than half of its positions or, if none does, is the likeliest new
    one; when no new ones are left, the likeliest repeats.
    """
    numbers = finished_states(truth.world)
    sequences = all_states(truth.world.vocab_size, truth.world.length)[numbers]
    order = np.argsort(-truth.evidence[numbers], kind="stable")
    chosen = [order[0]]
    for _ in range(1, count):
        apart = (sequences[:, None] != sequences[chosen]).sum(axis=-1).min(axis=-1)
        far = order[apart[order] > truth.world.length / 2]
        near = order[apart[order] > 0]
        chosen.append(next(iter([*far[:1], *near[:1], order[0]])))
    return np.asarray(sequences[chosen])


def _starts(searches: _Searches, n: int, tables: Mapping[str, Array]) -> dict[str, TableMixture]:
    rng = np.random.default_rng((searches.config.seed, n))
    starts = {name: single(to_logits(searches.layout, table, n)) for name, table in tables.items()}
    teacher, likely = starts["teacher"], likely_sequences(searches.truth, 1)
    return {
        **starts,
        "leaning": _leaning(teacher, likely, _LEANING),
        "leaning more": _leaning(teacher, likely, 2 * _LEANING),
        "perturbed": _perturbed(teacher, _NOISE, rng),
        "random": _perturbed(jax.tree.map(np.zeros_like, teacher), _NOISE, rng),
    }


def _mixture_starts(
    searches: _Searches, n: int, size: int, best: SearchEnd
) -> dict[str, TableMixture]:
    """Tables that each lean towards a sequence of their own, and copies of the best table with some noise."""
    truth = searches.truth
    rng = np.random.default_rng((searches.config.seed, n, size))
    teacher = _copies(single(to_logits(searches.layout, truth.teacher, n)), size)
    return {
        "leaning": _leaning(teacher, likely_sequences(truth, size), _LEANING),
        "floor": _perturbed(_copies(best.mixture, size), _NOISE / 4, rng),
    }


def _copies(mixture: TableMixture, size: int) -> TableMixture:
    return jax.tree.map(lambda a: np.repeat(a, size, axis=0), mixture)


def _leaning(mixture: TableMixture, sequences: Array, by: float) -> TableMixture:
    """Each table with one sequence made likelier at the fully masked state."""
    first, *rest = (np.array(rows) for rows in mixture.logits)
    tables, positions = np.indices(sequences.shape)
    first[tables, 0, positions, sequences] += by
    return TableMixture(mixture.shares, (first, *rest))


def _perturbed(mixture: TableMixture, by: float, rng: np.random.Generator) -> TableMixture:
    return jax.tree.map(lambda a: a + by * rng.standard_normal(a.shape, np.float32), mixture)


def _different(tables: Mapping[str, Array]) -> dict[str, Array]:
    """Drops tables that equal an earlier one, as the optimum of kl-fwd equals the teacher."""
    kept: dict[str, Array] = {}
    for name, table in tables.items():
        if not any(np.allclose(table, other, atol=1e-6) for other in kept.values()):
            kept[name] = table
    return kept


def _best(ends: Ends, objective: str, optimizer: str | None = None) -> SearchEnd:
    own = (
        end
        for job, end in ends.items()
        if job.objective == objective and optimizer in (None, job.optimizer)
    )
    return min(own, key=lambda end: end.value)


def _measures(searches: _Searches, n: int, mixture: TableMixture) -> Record:
    """The measures of a mixture's samples, in float64."""
    truth, layout = searches.truth, searches.layout
    laws = [
        sample_distribution(reveal_sums(to_predictions(layout, table, truth.teacher)), n)
        for table in zip(*mixture.logits, strict=True)
    ]
    return truth.measures_of(special.softmax(np.float64(mixture.shares)) @ laws)


def _search_record(ends: Ends, objective: str) -> Record:
    starts: Record = {}
    for job, end in ends.items():
        if job.objective == objective:
            starts.setdefault(job.start, {})[job.optimizer] = end.value
    best = {name: _best(ends, objective, name).value for name in OPTIMIZERS}
    return {**best, "starts": starts}


def _line(n: int, record: Record) -> str:
    floor, ends = record["floor"][str(n)], record["floor_search"][str(n)]
    values = {
        "KL(samples || language)": floor["kl"]["kl"],
        "KL(language || samples)": floor["kl_reverse"]["kl_reverse"],
        "total variation": floor["tv"]["tv"],
    }
    apart = {o: _apart(end) for o, end in ends.items()}
    doubt = "".join(f"; {o} has not settled" for o, gap in apart.items() if gap > SETTLED)
    found = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return (
        f"floor at {n} call{'s' * (n > 1)}: {found} "
        f"(the two optimizers at most {max(apart.values()):.1e} apart{doubt})"
    )
