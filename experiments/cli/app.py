"""Exit statuses, one-line errors and quiet logs of the entry points."""

import contextlib
import functools
import gc
import logging as python_logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import jax
from absl import app, flags, logging

from experiments import stop_starting
from experiments.cli import output
from experiments.cli.arguments import CONFIG_FLAGS, IN_FLAGS, config_files, in_words, require_utf8
from experiments.cli.tables import Terminal
from sdtt_jax.config import require
from sdtt_jax.errors import EXIT_INTERRUPTED, ConfigError, UserError, first_line
from sdtt_jax.parallel import ending, processes
from sdtt_jax.parallel.environment import compiled_sooner, threads_to_wait_in
from sdtt_jax.paths import as_path, home, is_remote, refuse_dangling, resolve_links
from sdtt_jax.progress import say_stopping
from sdtt_jax.renamed import FLAGS
from sdtt_jax.training.loop import Interrupted

_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    processes.MODES,
    "Join the other processes of this job: auto (if there are any), on (always) or off (never).",
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder for compiled programs, so that the next start compiles nothing; empty for none. By default "
    "$JAX_COMPILATION_CACHE_DIR, or else ~/.cache/sdtt_jax/compiled.",
)
# Flags in which the processes of a job may differ; of configs, `open_run` compares what they say.
OWN_FLAGS = ("compilation_cache", "config", "output", "workdir")
# Seconds; programs that compile faster are not stored.
CACHED_SECONDS = 0.1


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, as `--compilation_cache` says."""
    folder = _CACHE.value
    if folder is None:
        given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
        if given is not None:
            if given.startswith("~"):
                jax.config.update("jax_compilation_cache_dir", str(as_path(given)))
            return
        here = home()
        # A container's numeric user has no home, and so gets no cache.
        folder = "" if here is None else str(here / ".cache" / "sdtt_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(as_path(folder)) if folder else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_SECONDS)


def output_file(path: str | None) -> Path | None:
    """The file that --output names, if any, checked to be writable before any work is done."""
    if path is None:
        return None
    file = as_path(path)
    if file.is_dir():
        raise ConfigError(f"--output={path} is a folder; name a file.")
    if is_remote(file):
        return file
    written = resolve_links(file)
    refuse_dangling(written, ConfigError)
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(
            f"--output={path} cannot be written to: {written.parent} is a file."
        ) from None
    except OSError as error:
        raise ConfigError(f"--output={path} cannot be written to: {error.strerror}.") from None
    # A file that is there is replaced or, where its folder forbids that, written to.
    if not os.access(written if written.exists() else written.parent, os.W_OK):
        raise ConfigError(f"--output={path} cannot be written to: permission denied.")
    return file


def join_processes() -> None:
    """Joins the other processes of this job, as `--distributed` says; all must have the same flags."""
    os.environ.update(threads_to_wait_in(os.environ))
    processes.initialize(_DISTRIBUTED.value)
    require_same_flags()
    if ending.is_alone():
        # Even in a job of one process, JAX's handler of SIGTERM has replaced ours.
        signal.signal(signal.SIGTERM, _stop)
    else:
        signal.signal(signal.SIGINT, _stop_all)


def require_same_flags(given: flags.FlagValues = flags.FLAGS) -> None:
    """Raises `ConfigError` if the flags of processes differ, but for `OWN_FLAGS` and those of absl."""
    found = {
        f"--{name}": given[name].value
        for name in given
        if given[name].present
        and name.split(".")[0] not in OWN_FLAGS
        and not str(given.find_module_defining_flag(name)).startswith("absl")
    }
    processes.require_same("The command", found, "give all processes the same flags")


def _stop_all(number: int, _frame: FrameType | None) -> None:
    """Handles Ctrl-C in one of several processes: turns it into SIGTERM, of which JAX tells the others."""
    signal.signal(number, signal.SIG_DFL)
    say_stopping()
    signal.raise_signal(signal.SIGTERM)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Handles SIGTERM until JAX's handler replaces it in a job of several processes; a second one kills."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _heard_in_callbacks() -> Iterator[None]:
    """Re-raises a KeyboardInterrupt that Python dropped in a callback, such as a finalizer."""
    before, again = sys.unraisablehook, []

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            # A shell starts a command that ends in "&" with SIGINT ignored.
            if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            # Sent once the main thread has left the callback and this hook, whose exceptions are dropped too.
            main = threading.main_thread().ident
            again.append(threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)))
            again[-1].start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        # A command that has ended by itself is not interrupted on its way out.
        for timer in again:
            timer.cancel()


def stopwatch() -> Callable[[str], None]:
    """A function that logs lines to stderr, each with the time since this call: `[1:05] …`."""
    began = time.monotonic()

    def log(line: str) -> None:
        elapsed = int(time.monotonic() - began)
        print(f"[{elapsed // 60}:{elapsed % 60:02d}] {line}", file=sys.stderr, flush=True)

    return log


def wide_console(width: int = 120, *, markup: bool = False) -> Terminal:
    """The terminal, or `width` columns without one: Rich would assume 80, and wrap the cells of tables.

    Brackets in names and texts are printed as they are, unless `markup` is set; so is ":cat:".
    """
    console = Terminal(markup=markup, emoji=False)
    return console if console.is_terminal else Terminal(width=width, markup=markup, emoji=False)


def exit_status(
    main: Callable[[Sequence[str]], None], argv: Sequence[str], *, resumes: bool = False
) -> int:
    """Calls `main`; a user's or the system's error (a full disk, no memory) becomes one line on stderr.

    In one of several processes, an error ends the others too, with the same status.

    `resumes` tells whether the same command, after a stop, continues where it stopped; else it starts again.

    Returns:
      0 when done; 2 for an error in config or flags (trying again is of no use); 75 when a signal stopped it
      (the same command resumes, or starts again); 141, silently, when the reader of its output has left
      (`| head -1`), as a shell reports it of other programs; 1 for any other of these errors.
    """
    try:
        with _heard_in_callbacks():
            status = _status(main, argv, resumes)
    except Exception:
        if ending.is_alone():
            raise
        # A computation also fails when another process has left the job.
        message, status = ending.failed_elsewhere() or ("", output.EXIT_FAILED)
        if not message:
            traceback.print_exc()
            message = "One of several processes has failed; if others ended before it, their output says why."
        print(f"Error: {message}", file=sys.stderr)
    if status not in (0, EXIT_INTERRUPTED):
        ending.fail(status)
    return status


def _status(main: Callable[[Sequence[str]], None], argv: Sequence[str], resumes: bool) -> int:
    try:
        main(argv)
        sys.stdout.flush()
    except Interrupted as stop:
        print(f"{stop} Run the same command to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        _say_stopped(resumes)
        return EXIT_INTERRUPTED
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return output.EXIT_CONFIG if isinstance(error, ConfigError) else output.EXIT_FAILED
    except BrokenPipeError:
        output.discard_output()
        return output.EXIT_PIPE
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        # "INTERNAL: … Out of memory" of a program that is dispatched while another one runs.
        told = any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))
        if not isinstance(error, MemoryError) and not told:
            raise
        reason = first_line(error, "out of memory")
        print(f"Error: {reason}; take a smaller batch or model, or more devices.", file=sys.stderr)
        return output.EXIT_FAILED
    except Exception as error:
        reason, status = output.missing_platform(_of_devices(error))
        if reason:
            print(f"Error: {reason}", file=sys.stderr)
            return status
        if not isinstance(error, OSError) and not output.is_of_a_bucket(error):
            raise
        output.discard_output()
        print(f"Error: {output.system_error(error)}", file=sys.stderr)
        return output.EXIT_FAILED
    return 0


def _of_devices(error: Exception) -> Exception:
    """`error`, or the full error of `jax.devices()` if JAX raised a bare AssertionError."""
    if isinstance(error, AssertionError) and not error.args and ending.is_alone():
        try:
            jax.devices()
        except AssertionError as again:
            return again
    return error


def parse_flags(argv: list[str], check: Callable[[Sequence[str]], None] | None) -> list[str]:
    """The arguments in `argv` that are not flags; a wrong or renamed flag ends the program with one line."""
    try:
        require_utf8(argv)
        # What files of flags hold is checked like the rest.
        argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
        argv = config_files(argv)
        if check is not None:
            check(argv)
        return list(flags.FLAGS(argv))
    except SystemExit:  # raised for --help, which absl treats as a failure
        sys.exit(0)
    except BrokenPipeError:  # of --help, for `run_app`
        raise
    except IN_FLAGS as error:
        gone = str(getattr(error, "flagname", ""))
        now = FLAGS.get(gone, "")
        message = f"--{gone} is now --{now}." if now in flags.FLAGS else in_words(error)
        print(f"Error: {message} (see --help)", file=sys.stderr)
        sys.exit(output.EXIT_CONFIG)


def check_flags(argv: Sequence[str], *required: str) -> None:
    """Checks that there are flags only, and among them the required ones."""
    require(len(argv) == 1, f"Unknown argument {' '.join(argv[1:])!r}; see --help.")
    for name in required:
        flag = flags.FLAGS[name]
        empty = flag.present and flag.value is None and name in CONFIG_FLAGS
        require(not empty, f"--{name}: get_config returned None; let it return the config.")
        require(flag.value not in (None, ""), f"--{name} is missing; see --help.")


def refuse(reason: str, *names: str) -> None:
    """Raises `ConfigError` if any of these flags is given; `reason` says why it would change nothing."""
    given = [name for name in names if flags.FLAGS[name].present]
    them = "them" if given[1:] else "it"
    require(
        not given, f"{reason}, so --{', --'.join(given)} would change nothing; leave {them} out."
    )


def run_app(
    main: Callable[[Sequence[str]], None],
    check: Callable[[Sequence[str]], None] | None = None,
    *,
    cache: bool = True,
    resumes: bool = False,
) -> None:
    """`absl.app.run` with one-line errors; JAX's and Orbax's INFO lines only with --verbosity=0.

    `check` is called with the command line before absl parses it; `cache` keeps compiled programs for later;
    `resumes` is that of `exit_status`.
    """

    def quiet(argv: Sequence[str]) -> int:
        gc.freeze()  # the garbage collector need not scan imported modules again
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_logger().addFilter(output.shorten)
            # gcsfs raises what it logs, and logs it with a page of its own stack.
            python_logging.getLogger("gcsfs").setLevel(python_logging.CRITICAL)
        # JAX_NUMPY_RANK_PROMOTION=raise is for a user's own code; ours adds rows to matrices, as NumPy does.
        jax.config.update("jax_numpy_rank_promotion", "allow")
        if cache:
            os.environ.update(compiled_sooner(os.environ))
            keep_compiled_programs()
        status = exit_status(main, argv, resumes=resumes)
        # Several processes that were asked to stop have agreed where, and leave the job together.
        if status and (ending.is_alone() or status != EXIT_INTERRUPTED):
            ending.leave(status)
        return status

    output.print_anywhere()
    signal.signal(signal.SIGTERM, _stop)
    try:
        if signal.getsignal(signal.SIGINT) is stop_starting:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app.run(quiet, flags_parser=functools.partial(parse_flags, check=check))
    except KeyboardInterrupt:  # before `main`
        _say_stopped(resumes)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        output.discard_output()
        sys.exit(output.EXIT_PIPE)


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """`run_app` for a program that reads its command line itself; SIGTERM, too, lets it end its processes."""
    output.print_anywhere()
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(exit_status(main, sys.argv))


def _say_stopped(resumes: bool) -> None:
    """Prints what to do after Ctrl-C or SIGTERM."""
    what = "go on" if resumes else "start again"
    print(f"Stopped. Run the same command to {what}.", file=sys.stderr)
