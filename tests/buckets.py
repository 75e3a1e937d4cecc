"""The bucket `gs://bucket`, which a server of Google's storage protocol on this machine keeps in its memory.

gcsfs and TensorStore (which writes the arrays for Orbax) both take the server's address from the environment,
so all that differs from the real thing is who answers.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, str]]:
    """The environment in which programs find the bucket; a test should use a folder of its own there."""
    from launch.local import free_port

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["start", f"--port={port}", "--host=127.0.0.1", "--in-memory"]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(address)
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_CLOUD_PROJECT": "project",
            # Nobody is asked for credentials or for the kind of the bucket, which takes seconds each time.
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        process.kill()
        process.wait()


def _make_bucket(address: str) -> None:
    request = urllib.request.Request(
        f"{address}/storage/v1/b?project=project",
        data=json.dumps({"name": "bucket"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.1)


async def _copy_and_remove(system: Any, source: str, target: str, **_: Any) -> None:
    """Moves a file; the server knows no other way."""
    await system._cp_file(source, target)
    await system._rm_file(source)


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bucket, which this process can read and write."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)

    import gcsfs

    from sdtt_jax import paths

    # gcsfs would ask the server to move it, for half a minute, before it does the same.
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_mv_file", _copy_and_remove, raising=False)
    return paths.as_path("gs://bucket")


def files(folder: Path) -> list[Path]:
    """All files below a folder, here or in a bucket."""
    return [
        file
        for path in sorted(folder.iterdir())
        for file in (files(path) if path.is_dir() else [path])
    ]
