"""Export, push, load. Oracle: a hub on this machine that keeps what it is sent."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.forking import ROOT, run_module
from tests.interchange.hub_server import TOKEN, serving
from tests.interchange.llama_models import repository, vocabulary


@pytest.fixture
def hub():
    with serving() as server:
        yield server


@pytest.fixture
def published(golden, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(golden / "reference_tiny" / "teacher_hub.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model": {"length": 32}}))
    return folder


def environment_of(hub, tmp_path, token=TOKEN):
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
    }


def python(hub, tmp_path, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment_of(hub, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )


def export(hub, tmp_path, published, *more, push="me/model", token=TOKEN):
    flags = (f"--checkpoint={published}", f"--output={tmp_path / 'out'}", f"--push={push}", *more)
    return run_module("experiments.export", flags, environment_of(hub, tmp_path, token))


def test_what_is_pushed_is_what_was_exported_and_loads_by_its_name(hub, published, tmp_path):
    done = export(hub, tmp_path, published)
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/me/model"
    assert hub.private == {"me/model": True}
    sent = hub.files["me/model"]
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]
    assert sent["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert TOKEN not in done.stdout + done.stderr + sent["README.md"].decode()

    code = "import sdtt_jax; m = sdtt_jax.load('me/model', 'main'); print(m.facts['path'], m.config.length)"
    loaded = python(hub, tmp_path, code)
    assert loaded.stdout.split() == ["me/model@main", "32"], loaded.stderr
    missing = python(hub, tmp_path, "import sdtt_jax; sdtt_jax.load('me/other')")
    assert "me/other" in missing.stderr


def test_public_is_asked_for(hub, published, tmp_path):
    assert export(hub, tmp_path, published, "--public").status == 0
    assert hub.private == {"me/model": False}


def test_without_a_token_nothing_is_written(hub, published, tmp_path):
    done = export(hub, tmp_path, published, token="")
    assert done.status == 2
    assert "needs a token with write access in $HF_TOKEN" in done.stderr
    assert not (tmp_path / "out").exists()
    assert hub.asked == []


def test_a_token_that_the_hub_refuses_is_an_error_that_does_not_show_it(hub, published, tmp_path):
    done = export(hub, tmp_path, published, token="hf_wrong")
    assert done.status == 1
    assert "me/model: the hub refuses" in done.stderr
    assert "hf_wrong" not in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_name_that_is_no_repository_and_flags_that_change_nothing_are_refused(
    hub, published, tmp_path
):
    done = export(hub, tmp_path, published, push="nonsense")
    assert done.status == 2
    assert "--push=nonsense is not OWNER/NAME" in done.stderr
    done = export(hub, tmp_path, published, "--num_steps=4", "--mode=confidence")
    assert done.status == 2
    assert "so --num_steps, --mode would change nothing; leave them out." in done.stderr


def test_several_files_come_with_their_tokenizer(hub, tmp_path):
    """A denoiser of the Llama family, loaded from the hub as from its folder."""
    folder = repository(tmp_path / "m", "dream", shards=2)
    vocabulary({chr(97 + i): i for i in range(17)}).save(str(folder / "tokenizer.json"))
    hub.files["me/dream"] = {file.name: file.read_bytes() for file in folder.iterdir()}
    code = (
        "import sdtt_jax; m = sdtt_jax.load('me/dream', length=6); t = m.tokenizer;"
        "print(m.facts['kind'], m.config.shift, m.config.length, t.decode(t.encode('d e')))"
    )
    loaded = python(hub, tmp_path, code)
    assert loaded.stdout.split() == ["llama-denoiser", "True", "6", "d", "e"], loaded.stderr
    del hub.files["me/dream"]["model-00002-of-00002.safetensors"]
    hub.files["me/part"] = hub.files["me/dream"]
    missing = python(hub, tmp_path, "import sdtt_jax; sdtt_jax.load('me/part')")
    assert "me/part lacks model-00002-of-00002.safetensors" in missing.stderr
