"""The live display. Oracle: what a recorded terminal shows."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.cli.watch import MASKED, NEW, frame, watch
from sdtt_jax.diffusion.sampler import SamplerState
from sdtt_jax.parallel.environment import virtual_devices
from tests.experiments.processes import call


class Letters:
    """Ids are letters; 26 is MASK."""

    mask_id = 26

    def pieces(self, ids):
        return ["▒" if i == 26 else chr(97 + i) for i in map(int, ids)]


def states():
    for nfe, row in enumerate([[26, 26, 26], [26, 1, 26], [0, 1, 2], [0, 1, 2]]):
        yield SamplerState(jnp.array([row]), jnp.int32(min(nfe, 2)))


def test_masks_are_dim_and_what_is_new_is_bright():
    text = frame(np.array([26, 1, 2]), np.array([26, 26, 2]), Letters())
    assert text.plain == "▒bc"
    assert [span.style for span in text.spans] == [MASKED, NEW]


@pytest.mark.parametrize("terminal", [True, False])
def test_every_state_is_shown_in_place_and_the_last_stays(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=60, color_system=None)
    last = watch(states(), Letters(), 2, 0.0, console)
    np.testing.assert_array_equal(last.x, [[0, 1, 2]])
    shown = out.getvalue()
    assert "abc" in shown
    assert ("step 1 of 2, 1 network call, 2 tokens masked" in shown) == terminal
    assert "step 2 of 2, 2 network calls, 0 tokens masked" in shown
    assert ("▒b▒" in shown) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_stays_is_the_text_as_it_is_finished(terminal):
    """As by --stop_at_eos, which takes what follows EOS away. Oracle: the shown text, and the raw state."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=60, color_system=None)
    last = watch(states(), Letters(), 2, 0.0, console, finish=lambda x: np.where(x > 1, 25, x))
    assert "abz" in out.getvalue().rpartition("abc")[2]
    assert ("abc" in out.getvalue()) is terminal
    np.testing.assert_array_equal(last.x, [[0, 1, 2]])


@pytest.mark.multidevice
def test_the_texts_that_are_watched_are_those_that_are_not(unbroken, tmp_path, monkeypatch):
    """Five texts in batches of three on two devices: rows that fill up batches are not shown."""
    for variable, value in virtual_devices(2).items():
        monkeypatch.setenv(variable, value)
    words = f"--checkpoint={unbroken.root}", "--num_steps=2", "--num_samples=5", "--batch_size=3"
    shown = {}
    for name, watched in (("watched", True), ("unwatched", False)):
        done = call("sample", *words, f"--watch={watched}", f"--output={tmp_path / name}")
        assert done.status == 0, done.stderr
        shown[name] = done.stdout
    texts = [
        [json.loads(line)["text"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("watched", "unwatched")
    ]
    assert len(set(texts[0])) == 5
    assert texts[0] == texts[1]
    ends = [line for line in shown["watched"].splitlines() if "tokens masked" in line]
    places = [shown["watched"].find(text[:20]) for text in texts[0]]
    assert len(ends) == 5, shown["watched"]
    assert -1 < places[0] < places[1] < places[2] < places[3] < places[4]
