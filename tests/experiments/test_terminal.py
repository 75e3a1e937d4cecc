"""What every entry point says of its flags. Oracle: the message, and what lies on the disk."""

import errno
import os
import pathlib
import platform
import signal
import subprocess
import sys
import threading
import time
import types
import weakref

import jax
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend

import sdtt_jax
from experiments.cli import app as cli_app
from experiments.cli import devices
from experiments.cli.app import exit_status, output_file, parse_flags
from experiments.cli.output import json_lines
from experiments.settings import check_overrides
from experiments.stages.mirror import local_root
from launch.local import environment, free_port
from sdtt_jax import renamed
from sdtt_jax.data.published import PublishedCorpus
from sdtt_jax.errors import CheckpointError, ConfigError, UserError
from sdtt_jax.formats import write_json
from sdtt_jax.interchange.safetensors import write_tensors
from tests.experiments.processes import call
from tests.forking import ROOT, run_module


def test_no_output_is_asked_for():
    assert output_file(None) is None


def test_the_folder_is_made_and_the_file_is_not(tmp_path):
    file = output_file(str(tmp_path / "new" / "b.json"))
    assert file == tmp_path / "new" / "b.json"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"--output=.* is a folder; name a file"):
        output_file(str(tmp_path))


def test_a_place_below_a_file_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(
        ConfigError, match=r"--output=.*b.json cannot be written to: .*file is a file"
    ):
        output_file(str(tmp_path / "file" / "b.json"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_without_permission(tmp_path, monkeypatch):
    """The system's answer is made up: whoever runs this may be root, who may write anywhere."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path or mode != os.W_OK)
    with pytest.raises(ConfigError, match="permission denied"):
        output_file(str(tmp_path / "b.json"))


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("run", ("workdir", "distributed", "compilation_cache")),
        ("sample", ("num_steps", "mesh", "distributed", "compilation_cache")),
        ("evaluate", ("suite", "mesh", "distributed", "compilation_cache")),
    ],
)
def test_help_shows_the_flags_that_are_defined_elsewhere_too(module, names):
    shown = call(module, "--help").stdout
    for name in names:
        assert f"  --{name}: " in shown, name


def test_a_flag_that_was_renamed_is_answered_by_its_new_name(monkeypatch, capsys):
    monkeypatch.setitem(renamed.FLAGS, "old_flag", "verbosity")
    with pytest.raises(SystemExit) as stop:
        parse_flags(["sample", "--old_flag=3"], None)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: --old_flag is now --verbosity. (see --help)\n"


def test_the_new_name_is_only_given_where_it_is_a_flag(monkeypatch, capsys):
    monkeypatch.setitem(renamed.FLAGS, "old_flag", "flag_of_another_command")
    with pytest.raises(SystemExit):
        parse_flags(["sample", "--old_flag=3"], None)
    assert "Unknown command line flag 'old_flag'" in capsys.readouterr().err


def test_a_field_without_its_group_is_named_with_it_where_there_is_a_config():
    said = [call(command, "--distill.num_rounds=3").stderr for command in ("run", "sample")]
    assert ["Did you mean: config.distill.num_rounds ?" in words for words in said] == [True, False]


def test_a_field_of_a_config_that_is_not_given_asks_for_it():
    """It suggested config.config.distill.num_rounds."""
    said = call("run", "--config.distill.num_rounds=3").stderr
    assert said.endswith("is a field of a config; give --config=FILE too (see --help)\n")


def test_help_may_be_cut_off_by_a_pipe(monkeypatch, capsys):
    """As by `--help | head`; it used to end with "Error: [Errno 32] Broken pipe (see --help)"."""

    def cut_off(_):
        raise BrokenPipeError

    cut_off.read_flags_from_files = lambda argv, **_: argv
    monkeypatch.setattr("experiments.cli.app.flags.FLAGS", cut_off)
    with pytest.raises(BrokenPipeError):
        parse_flags(["sample", "--help"], None)
    assert capsys.readouterr().err == ""


# Run by a numeric user without a home, whose own code may add no row to a matrix, in a terminal that cannot
# show a dash, and piped into `head`.
NARROW = """
import os, pwd
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.pop("HOME", None)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
import jax
from experiments.cli.app import run_app
def main(argv):
    matrix = jax.numpy.ones((2, 3))
    print("cache:", jax.config.jax_compilation_cache_dir, "—", (matrix + matrix[0]).shape)
    for number in range(100_000):
        print(number)
run_app(main)
"""


def test_commands_work_without_a_home_in_ascii_and_end_quietly_in_a_pipe_to_head():
    pipe = f'"{sys.executable}" -c "$PROGRAM" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", pipe],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PROGRAM": NARROW, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("cache: None \\u2014 (2, 3)\n", "")
    assert done.returncode == 141


JOB_OF_ONE = """
import signal
from experiments.cli.app import join_processes, run_app
def main(argv):
    join_processes()
    signal.raise_signal(signal.SIGTERM)
run_app(main)
"""


def test_sigterm_is_heard_in_a_job_of_one_process():
    """Even there JAX's handler of SIGTERM replaces ours, and nobody would ask it about the signal."""
    done = subprocess.run(
        [sys.executable, "-c", JOB_OF_ONE, "--distributed=on"],
        cwd=ROOT,
        env=environment(0, 1, 1, free_port()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr.endswith("Stopped. Run the same command to start again.\n")


@pytest.mark.parametrize("moment", ["at work", "before"])
@pytest.mark.parametrize(("resumes", "what"), [(True, "go on"), (False, "start again")])
def test_sigterm_ends_every_command_with_a_sentence(monkeypatch, capsys, moment, resumes, what):
    """As Ctrl-C does; it used to end all commands but `run` without a word."""

    def main(_argv):
        signal.raise_signal(signal.SIGTERM)

    def start(quiet, flags_parser):
        del flags_parser
        sys.exit(quiet([]) if moment == "at work" else main([]))

    monkeypatch.setattr(cli_app.app, "run", start)
    # Hence `os._exit`: an orderly exit during a computation ended in a segmentation fault, in 4 of 6 trials.
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cli_app.run_app(main, cache=False, resumes=resumes)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 75
    assert capsys.readouterr().err == f"Stopped. Run the same command to {what}.\n"


def test_what_needs_a_home_does_without_or_says_so(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    for name in ("SDTT_JAX_CACHE", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"no home directory .*set \$SDTT_JAX_CACHE"):
        local_root("gs://bucket/run")
    assert PublishedCorpus("lm1b", "", tfds=("lm1b", "text"))._prepared() is None


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch, capsys):
    """Oracle: Linux's /dev/full, and a write that fails as on a full disk, which names no file."""
    message = r"--output=/dev/full cannot be written to: No space left"
    with pytest.raises(UserError, match=message), json_lines(pathlib.Path("/dev/full")) as write:
        write({"text": "x"})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "x.json"
    write_json(file, "old")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    assert exit_status(lambda _: write_json(file, "new"), []) == 1
    assert capsys.readouterr().err == (
        f"Error: {file}: No space left on device; free some space and run the same command again.\n"
    )
    assert file.read_text() == '"old"\n'
    monkeypatch.setattr("sdtt_jax.interchange.safetensors.save_file", full)
    with pytest.raises(CheckpointError, match=r"m.safetensors cannot be written .*No space left"):
        write_tensors(tmp_path / "m.safetensors", {"x": np.zeros(1)})


FREES_AND_ASKS_AGAIN = """
import resource
import numpy as np
from experiments.cli.memory import keep_freed_memory
from sdtt_jax.networks import DenoiserConfig
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory(DenoiserConfig(num_layers=12, embed_dim=768))
print(faults(), faults())
keep_freed_memory(DenoiserConfig(num_layers=4, embed_dim=128, num_heads=4))
print(faults(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_freed_memory_is_used_again_by_small_models():
    """Oracle: the system's count of page faults; 128 new MiB cost 64 for huge pages, 32,768 for small."""
    output = subprocess.check_output([sys.executable, "-c", FREES_AND_ASKS_AGAIN], cwd=ROOT)
    large, large_again, _, small_again = map(int, output.split())
    assert min(large, large_again) > 50
    assert small_again < 10


def test_a_value_of_another_kind_is_named_and_help_is_no_failure():
    wrong = {
        "--num_steps=1e9": "a whole number",
        "--top_p=much": "a number",
        "--watch=maybe": "true or false",
    }
    for flag, kind in wrong.items():
        assert call("sample", flag) == (2, "", f"Error: {flag} must be {kind}. (see --help)\n")
    assert call("sample", "--help").status == 0


def test_a_pause_is_a_time():
    flags = {"nan": "at least 0, not nan", "inf": "finite, not inf", "-1": "at least 0, not -1.0"}
    for value, said in flags.items():
        answer = call("sample", "--checkpoint=x", "--watch", f"--pause={value}")
        assert answer == (2, "", f"Error: --pause must be {said}.\n")
    answer = call("sample", "--checkpoint=x", "--pause=0.15")
    assert answer == (2, "", "Error: --pause needs --watch; leave it out, or add --watch.\n")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("0,1,1", "--mesh=0,1,1: DATA is 0, but must be positive, or -1 for the rest"),
        ("-2,1,1", "--mesh=-2,1,1: DATA is -2, but must be positive, or -1"),
        ("1,-1,1", "--mesh=1,-1,1: FSDP is -1, but must be positive; only DATA may be -1"),
        ("1,1,0", "--mesh=1,1,0: MODEL is 0, but must be positive;"),
        ("--1,1,1", "--mesh=--1,1,1 must be three whole numbers"),
    ],
)
def test_a_mesh_that_cannot_be_is_named_with_its_place(monkeypatch, sizes, said):
    monkeypatch.setattr(devices, "_MESH", types.SimpleNamespace(value=sizes.split(",")))
    with pytest.raises(ConfigError, match=said):
        devices.chosen_mesh()


@pytest.mark.parametrize("given", ["experiments/configs/smok.py", "nowhere/smoke.py", "smoke"])
def test_the_config_that_was_probably_meant_is_named(given, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"did you mean 'experiments/configs/smoke\.py'\?"):
        check_overrides([f"--config={given}"])


def test_a_config_that_is_no_python_is_named_with_its_line(tmp_path):
    (tmp_path / "a.md").write_text('x = 1\n"Well\n')
    with pytest.raises(
        ConfigError, match=r"--config=.*/a\.md is not Python \(unterminated.*, line 2\); "
    ):
        check_overrides([f"--config={tmp_path}/a.md"])
    (tmp_path / "b.png").write_bytes(b"\x89PNG\x00")
    with pytest.raises(ConfigError, match=r"--config=.*/b\.png is not Python"):
        check_overrides([f"--config={tmp_path}/b.png"])


def test_no_workers_are_refused_by_the_name_of_the_flag(tmp_path):
    smoke = "--config=experiments/configs/smoke.py"
    found = call("data", "prepare", smoke, f"--workdir={tmp_path}", "--workers=0")
    assert found == (2, "", "Error: --workers must be positive, not 0.\n")


def test_chaos_without_kills_is_refused(tmp_path):
    found = run_module("tools.chaos", [f"--directory={tmp_path / 'a'}", "--kills=0"])
    assert found.status == 2
    assert "--kills=0: 0 is not a positive integer" in found.stderr
    assert not (tmp_path / "a").exists()


def test_a_tool_names_a_model_that_does_not_exist_in_one_line(tmp_path):
    flags = [f"--workdir={tmp_path}", "--init_from=/nope"]
    found = run_module("tools.adaptation", flags)
    assert found.status == 1
    assert found.stderr.splitlines()[-1].startswith("Error: There is no checkpoint at /nope; ")


def test_a_model_in_a_bucket_that_does_not_answer_is_not_said_to_be_missing(monkeypatch):
    """For a bucket, `isdir` says no, whatever the reason is."""

    def fail(*_):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fsspec_backend, "isdir", lambda _: False)
    monkeypatch.setattr(fsspec_backend, "exists", fail)
    with pytest.raises(PermissionError, match="Forbidden"):
        sdtt_jax.load("gs://bucket/run")


def interrupted(*_):
    raise KeyboardInterrupt


# The second is how a shell starts a command that ends in "&".
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_signal_is_obeyed_that_comes_in_a_callback(handler):
    """Python drops what a callback raises, so the run used to go on to its end."""

    def main(_):
        watched = threading.Event()
        reference = weakref.ref(watched, interrupted)
        del watched
        assert reference() is None
        time.sleep(30)

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert exit_status(main, []) == 75
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_error_of_jax_keeps_its_traceback():
    def fail(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError):
        exit_status(fail, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_while_it_starts_says_so_in_one_line(tmp_path, number):
    """It was a page of Python's stack. Oracle: what is said, and the status, a second later."""
    # A shell starts what ends in "&" with SIGINT ignored, and the command would inherit that.
    before = signal.signal(number, signal.SIG_DFL)
    # Every command imports it before it reads its flags.
    (tmp_path / "etils.py").write_text(f"import signal\nsignal.raise_signal({number:d})")
    command = [sys.executable, "-m", "experiments.report"]
    how = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(tmp_path)}, "text": True}
    try:
        done = subprocess.run(command, **how, capture_output=True, check=False)
    finally:
        signal.signal(number, before)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "Stopped. Run the same command to start again.\n"
