"""What commands write, and say of other libraries' errors. Oracles: the file, the line on stderr."""

import contextlib
import importlib.util
import logging
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.app import exit_status
from experiments.cli.output import is_of_a_bucket, json_lines, shorten
from sdtt_jax.errors import ConfigError
from tests.experiments.processes import SMOKE, call


def defined_in(module, *arguments):
    """A system error as another library defines it."""
    return type("AnError", (OSError,), {"__module__": module})(*arguments)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (defined_in("aiohttp.client_exceptions", "Cannot connect to host x:443"), "Cannot connect"),
        (defined_in("aiohttp.client_exceptions"), "AnError"),
        ({"code": 401, "message": "Anonymous caller\nmay not"}, "Anonymous"),
    ],
)
def test_a_bucket_that_does_not_answer_is_one_line_that_says_what_to_look_at(error, reason, capsys):
    if isinstance(error, dict):
        # Takes a second, which every process would spend to collect the tests.
        from gcsfs.retry import HttpError

        error = HttpError(error)

    def fail(_):
        raise error

    assert exit_status(fail, []) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"Error: a bucket did not answer \({reason}.*\); check its name, .*\n", said
    )


UNABLE = "Unable to initialize backend 'x': {} (set JAX_PLATFORMS='' to automatically choose one)"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("Backend 'x' is not in the list of known backends: ['cpu'].", 2), ("The TPU is in use.", 1)],
)
def test_a_platform_that_cannot_be_used_is_one_line(reason, status, monkeypatch, capsys):
    """Another attempt is of no use only if there is no such platform. Oracle: JAX's sentences."""

    def fail(_):
        raise RuntimeError(UNABLE.format(reason))

    monkeypatch.setenv("JAX_PLATFORMS", "x")
    assert exit_status(fail, []) == status
    said = capsys.readouterr().err
    assert said.startswith("Error: JAX finds no device for JAX_PLATFORMS=x (Unable to initialize ")
    assert f"{reason.rstrip('.')}); install what that platform needs" in said


def test_a_host_whose_own_name_has_no_address_is_one_line(monkeypatch, capsys):
    """Gloo, over which CPUs talk, looks it up. Oracle: JAX's sentence on a host with an unknown name."""
    reason = "[enforce fail at external/gloo/gloo/transport/tcp/device.cc:99] rv == 0. -2 vs 0"

    def fail(_):
        raise RuntimeError(UNABLE.format(reason))

    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    assert exit_status(fail, []) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "Error: the processes cannot reach each other: this host's own name, node-7, "
    )
    assert f"({reason}); add a line for it to /etc/hosts, such as '127.0.0.1 node-7' if" in said


@pytest.mark.skipif(
    any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="JAX's plugin for GPUs is installed",
)
def test_a_platform_without_a_plugin_is_one_line():
    """There JAX fails an assertion without a word, and cuts away that it is its own."""
    program = (
        "import jax, sys; from experiments.cli.app import exit_status;"
        "sys.exit(exit_status(lambda _: jax.numpy.zeros(1), []))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "for JAX_PLATFORMS=cuda (no plugin for it is installed); install " in done.stderr


@pytest.mark.parametrize(("closed", "printed"), [("2>&-", "text\n"), (">&-", ""), (">&- 2>&-", "")])
def test_notes_for_a_stream_that_is_closed_are_lost(closed, printed):
    """They came among the texts, and a file that is opened would get the number of the stream."""
    program = (
        "import os, sys; from experiments.cli.output import discard_output, print_anywhere;"
        "print_anywhere(); print('note', file=sys.stderr); print('text'); discard_output();"
        "sys.exit(os.open(os.devnull, os.O_RDONLY) < 3)"
    )
    done = subprocess.run(
        f'"{sys.executable}" -c "$PROGRAM" {closed}',
        env={**os.environ, "PROGRAM": program},
        shell=True,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_not_all_that_is_googles_is_of_a_bucket():
    assert is_of_a_bucket(defined_in("google.auth.exceptions"))
    assert not is_of_a_bucket(defined_in("google.protobuf.message"))


def test_a_failed_save_is_a_line_and_not_pages_of_orbax_s_stack(caplog):
    """The records of other modules keep their stack."""
    logger = logging.getLogger("a test")
    logger.addHandler(caplog.handler)
    logger.addFilter(shorten)
    try:
        raise OSError("No space left on device")
    except OSError:
        fault = sys.exc_info()
    logger.propagate = False
    for path in ("/lib/orbax/checkpoint/checkpoint_manager.py", "/lib/other.py"):
        record = logging.LogRecord("a test", logging.ERROR, path, 1, "Save failed.", None, fault)
        logger.handle(record)
    assert [record.exc_info for record in caplog.records] == [None, fault]
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize(
    ("lines", "refused", "left"),
    [
        (0, True, "precious\n"),  # as of a checkpoint without a learnt schedule
        (1, True, '{"text": 0}\n'),
        (2, False, '{"text": 0}\n{"text": 1}\n'),
    ],
)
def test_what_an_output_held_is_lost_to_the_first_line_and_not_to_an_error(
    tmp_path, lines, refused, left
):
    file = tmp_path / "keep.jsonl"
    file.write_text("precious\n")
    with contextlib.suppress(ConfigError), json_lines(file) as write:
        for number in range(lines):
            write({"text": number})
        if refused:
            raise ConfigError("guidance=1 … but no text is given")
    assert file.read_text() == left


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("data", "prepare", SMOKE, "--records=5", "--output=x"), "--records, --output would"),
        (("data", "prepare", SMOKE, "--beam=--runner=DirectRunner"), "Without --engine=beam"),
        (("data", "prepare", SMOKE, "--engine=beam", "--workers=2"), "so --workers would"),
        (("data", "inspect", "--corpus=x", "--engine=beam"), "so --corpus, --engine would"),
        (("report", "--batch=3"), "Without --race there is no batch size to show, so --batch"),
        (("report", "--exact=x", "--picture=a.png", "--race=b.png"), "--exact has no race, so"),
    ],
)
def test_flags_of_another_command_are_refused_before_anything_is_done(command, said, tmp_path):
    workdir = [] if "--exact=x" in command else [f"--workdir={tmp_path}"]
    done = call(*command, *workdir)
    assert (done.status, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert said in line
    assert line.endswith(f"would change nothing; leave {'them' if ', --' in line else 'it'} out.")
    assert [*tmp_path.iterdir()] == []


def test_an_inspection_without_held_out_text_reads_that_of_the_run(unbroken):
    done = call(
        "inspect",
        f"--checkpoint={unbroken.root}",
        "--held_out=",
        "--texts=1",
        "--num_maskings=1",
    )
    assert done.status == 0, done.stderr
    assert "loss on validation split of the run, 1 texts of 32 tokens" in done.stdout


def test_too_little_memory_is_one_line(capsys):
    """64 pebibytes, which no machine has, are asked of NumPy and of JAX; the third has JAX's own words."""

    def dispatched(*_):
        said = "INTERNAL: Error dispatching computation: Out of memory allocating 65 bytes."
        raise jax.errors.JaxRuntimeError(said)

    for ones in (np.ones, jnp.ones, dispatched):
        assert exit_status(lambda _, ones=ones: ones((2**16, 2**40), np.int8), []) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"Error: .*; take a smaller batch or model, or more devices\.\n", said)
