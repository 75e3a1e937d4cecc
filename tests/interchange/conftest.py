"""A run of random parameters, for tests that load and export it; a folder in place of the hub."""

import pytest

from tests.model.runs import model, run

__all__ = ["model", "run"]


@pytest.fixture
def hub_of(monkeypatch):
    """Puts a folder in the hub's place; gives a list to which the name of each file asked for is added."""

    def put(folder):
        asked = []

        def download(_repo, file, **_):
            asked.append(file)
            if not (folder / file).is_file():
                raise OSError(file)
            return str(folder / file)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        return asked

    return put
