"""Compares the speed of the samplers in two checkouts, which write texts in turns.

  git worktree add --detach ../before REVISION
  python tools/turns.py --before=../before --turns=21

Each checkout runs in a process of its own. A turn writes a batch of texts of the demo's size from random
parameters, timed in CPU seconds, so that other programs disturb it little, and both checkouts alike. The
ratio is the old median over the new one: above 1 where the new one is faster. Only functions that every
version has are called.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def serve(mode: str, num_steps: int, batch_size: int) -> None:
    """Writes one batch of texts for each line that it reads, and answers with its CPU seconds."""
    import jax

    import sdtt_jax

    print(json.dumps(sdtt_jax.__file__), flush=True)
    from sdtt_jax.diffusion.sampler import SamplerConfig
    from sdtt_jax.diffusion.schedule import make_schedule
    from sdtt_jax.errors import UserError
    from sdtt_jax.model.masked import Model
    from sdtt_jax.networks import Denoiser, DenoiserConfig
    from sdtt_jax.parallel.placement import unbox

    network = Denoiser(DenoiserConfig(30, 64, num_layers=4, embed_dim=128, num_heads=4))
    params = unbox(jax.jit(network.init)(jax.random.key(0)))
    facts = {"path": "random parameters", "kind": "denoiser"}
    model = Model(
        params=params, tokenizer=None, facts=facts, denoiser=network, schedule=make_schedule()
    )
    key = jax.random.key(0)

    def write() -> float:
        began = time.process_time()
        jax.block_until_ready(model.denoise(key, x_init, config).x)
        return time.process_time() - began

    try:
        config, x_init = SamplerConfig(num_steps, mode=mode), model.prior(batch_size)
        write()
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
        return
    print(json.dumps(""), flush=True)
    for _ in sys.stdin:
        print(json.dumps(write()), flush=True)


def started(root: Path, arguments: tuple[str, int, int]) -> subprocess.Popen[str]:
    """Starts a process that runs `serve` with the library of a checkout."""
    worker = subprocess.Popen(
        [sys.executable, "-c", f"import turns; turns.serve(*{arguments!r})"],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}"},
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    found = json.loads(worker.stdout.readline() or '""')
    if not found.startswith(f"{root}{os.sep}"):
        fault = f"{root} is not a checkout of this repository."
    else:
        fault = json.loads(worker.stdout.readline() or '"It failed; its error is shown above."')
        fault = fault and f"{root}: {fault}"
    if fault:
        worker.kill()
        worker.communicate()
        sys.exit(f"Error: {fault}")
    return worker


def main() -> None:
    """Prints the medians and the ratio of each decoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", required=True, type=Path, help="the older checkout")
    parser.add_argument("--modes", nargs="+", default=["grid", "first-hitting"])
    parser.add_argument("--num_steps", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=21)
    given = parser.parse_args()
    for mode in given.modes:
        arguments = (mode, given.num_steps, given.batch_size)
        workers = [started(root, arguments) for root in (given.before.resolve(), ROOT)]
        seconds: list[list[float]] = [[], []]
        for turn in range(given.turns):
            for which in (0, 1) if turn % 2 else (1, 0):
                worker = workers[which]
                assert worker.stdin is not None
                assert worker.stdout is not None
                print(file=worker.stdin, flush=True)
                seconds[which].append(json.loads(worker.stdout.readline()))
        for worker in workers:
            worker.communicate()
        before, now = map(statistics.median, seconds)
        pairs = sorted(b / n for b, n in zip(*seconds, strict=True))
        low, high = pairs[len(pairs) // 4], pairs[-1 - len(pairs) // 4]
        print(
            f"{mode}, {given.num_steps} calls, {given.batch_size} texts: {before:.4f} CPU s before, "
            f"{now:.4f} now; ratio {before / now:.3f} (half of the turns {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
