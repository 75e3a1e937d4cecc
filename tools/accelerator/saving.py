"""A training state to disk and back, with Orbax and the digests of every leaf."""

import functools
import os
import tempfile
import time

import jax

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.networks import Denoiser
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.training.state import StateSpec
from tools.accelerator.bench import Bench, Row
from tools.accelerator.steps import TINY_VOCAB, VOCAB, paper


def saving(bench: Bench) -> None:
    """The part "saving": the small size's teacher with moments and average."""
    bench.row("saving", {"state": "teacher, small"}, lambda: _there_and_back(bench))


def _there_and_back(bench: Bench) -> Row:
    config = paper("small", tiny=bench.tiny)
    denoiser = Denoiser(config.denoiser(TINY_VOCAB if bench.tiny else VOCAB))
    spec = StateSpec(config.teacher.train, make_mesh(MeshConfig(), jax.devices()[:1]))
    init = functools.partial(denoiser.init, jax.random.key(0))
    state = jax.block_until_ready(spec.init(init))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder, Checkpoints(folder) as store:
        began = time.perf_counter()
        store.save(state)
        held = time.perf_counter() - began
        store.wait()
        saved = time.perf_counter() - began
        on_disk = sum(
            os.path.getsize(os.path.join(place, name))
            for place, _, names in os.walk(folder)
            for name in names
        )
        abstract = spec.abstract(init)
        began = time.perf_counter()
        restored = store.restore(abstract)
        jax.block_until_ready(restored)
        read = time.perf_counter() - began
    return {
        "GB": size,
        "on disk GB": on_disk / 1e9,
        "saving holds the loop s": held,
        "saved s": saved,
        "saved GB/s": size / saved,
        "restored s": read,
        "restored GB/s": size / read,
    }
