"""Options of the whole test suite."""

import gc
import itertools
import json
import os
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path

import pytest

# These import no JAX.
from tests.buckets import bucket, server  # noqa: F401 - fixtures
from tests.sharing import once

# The processes of a test run, and the programs that they start, compile the same things over and over, so
# they share a cache. It is set before anything imports JAX.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax")
)
# Even the shortest compilation is worth a file: most programs are single operations, where a hit takes half
# the time, and every process that the tests start compiles some hundred of them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Most of the time goes into compiling small programs, so XLA's optimizations are turned off, and so are its
# emitters of fused loops, which take longer than the rest of the compiler: a distillation step on eight
# devices compiles in 2.9 s of CPU time; with the optimizations in 6.7, the emitters in 8.9, both in 12.5.
# Programs are not split for several threads either: that takes a quarter more CPU time, and the tests have a
# process for each core. The programs that tests start inherit this; tests/parity compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
XLA_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # Later versions have no other emitters, and end a program that passes this flag.
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in XLA_FLAGS if flag not in _GIVEN), *_GIVEN])

# Garbage collection is a quarter of importing 130 files of tests, and a twentieth of running them.
gc.set_threshold(10_000, 20, 20)

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Freezes what is imported, so that the garbage collector does not scan it again; notes the settings."""
    gc.collect()
    gc.freeze()
    session.stash[SETTINGS] = _settings()


SETTINGS = pytest.StashKey[dict[str, object]]()


def _settings() -> dict[str, object]:
    """The settings of JAX and XLA, which a test could leave changed for later ones."""
    jax = sys.modules.get("jax")
    values = {f"jax.config.{name}": x for name, x in jax.config.values.items()} if jax else {}
    return values | {name: x for name, x in os.environ.items() if name.startswith(("JAX_", "XLA_"))}


# Linux gives a process 65,530 memory maps (vm.max_map_count), and each compiled program takes several. With
# JAX 0.12 a process reached that number in the middle of the suite, and XLA ended it by a segmentation fault.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 25_000


def _forget_programs() -> None:
    """Lets go of all compiled programs if they have taken many memory maps."""
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Fails the last test of a file that leaves a setting changed; the tests after it would inherit it."""
    yield
    if nextitem is None or nextitem.path != item.path:
        _forget_programs()
        before, after = item.session.stash[SETTINGS], _settings()
        item.session.stash[SETTINGS] = after
        names = sorted(before.keys() | after.keys())
        if not any(name.startswith("jax.config.") for name in before):
            # JAX was first imported by a test of this file.
            names = [name for name in names if not name.startswith("jax.config.")]
        changed = [name for name in names if before.get(name) != after.get(name)]
        assert not changed, f"{item.path.name} leaves changed: {', '.join(changed)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        action="append",
        default=[],
        metavar="DIR",
        help="reference values for tests/parity: a folder with a config.json, or a folder of such "
        f"folders; may be given several times (default: {GOLDEN.name}/ beside the tests)",
    )


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values that is kept with the tests."""
    return GOLDEN


@pytest.fixture(scope="session")
def shortest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that make experiments/configs/smoke.py as short as it goes: every stage, one round.

    For tests of how a run proceeds, not of what it learns. The text is the first fifty chapters, which
    takes 6 s of CPU time off preparing the data, and AdamW compiles faster than Muon.
    """
    _, corpus = once(tmp_path_factory, "excerpt", _write_excerpt)
    return (
        f"--config.data.corpus={corpus}",
        "--config.teacher.train.num_steps=20",
        "--config.teacher.train.batch_size=8",
        *(f"--config.{stage}.train.optimizer.name=adamw" for stage in ("teacher", "judge")),
        *(
            f"--config.{stage}.train.optimizer.adam_learning_rate=0.0"
            for stage in ("teacher", "judge")
        ),
        "--config.judge.train.num_steps=12",
        "--config.judge.train.batch_size=8",
        "--config.distill.num_rounds=1",
        "--config.distill.train.num_steps=12",
        "--config.distill.train.batch_size=8",
        "--config.evaluation.num_texts=16",
        "--config.evaluation.batch_size=16",
        "--config.evaluation.num_steps=(4,)",
        "--config.evaluation.gain_sequences=16",
        "--config.evaluation.validation_sequences=16",
    )


def _write_excerpt(folder: Path) -> str:
    from sdtt_jax.data.embedded import bible_chapters

    path = folder / "corpus.jsonl"
    chapters = itertools.islice(bible_chapters(), 50)
    path.write_text("".join(json.dumps({"text": chapter}) + "\n" for chapter in chapters))
    return str(path)
