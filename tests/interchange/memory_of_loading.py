"""A program: loads a checkpoint onto a mesh of virtual devices, and prints its peak memory, in bytes.

python -m tests.interchange.memory_of_loading FILE DEVICES
"""

import sys
import threading

import jax

import sdtt_jax
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh


def resident() -> int:
    """Bytes of this process in memory, including mapped files."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def main(path: str, small: str, devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices))
    sdtt_jax.load(small, mesh=mesh)
    before = resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    model = sdtt_jax.load(path, mesh=mesh)
    jax.block_until_ready(model.params)
    done.set()
    thread.join()
    largest = max(jax.tree.leaves(model.params), key=lambda leaf: leaf.nbytes)
    assert largest.addressable_shards[0].data.nbytes * devices == largest.nbytes
    sys.stdout.write(f"{peak[0] - before}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
