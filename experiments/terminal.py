"""Exit statuses, one-line errors and quiet logs of the entry points."""

import functools
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.training.loop import EXIT_INTERRUPTED, Interrupted

EXIT_CONFIG = 2
EXIT_FAILED = 1


def exit_on_user_errors(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], int]:
    """Wraps an absl `main`: what the user can mend becomes one message and an exit status.

    0 done, 2 an error in config or flags (retrying is of no use), 75 stopped by a signal with the state
    saved (the same command goes on), 1 anything else.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str]) -> int:
        try:
            main(argv)
        except Interrupted as stop:
            print(f"{stop} Run the same command to go on.", file=sys.stderr)
            return EXIT_INTERRUPTED
        except KeyboardInterrupt:
            print("Stopped. Run the same command to go on.", file=sys.stderr)
            return EXIT_INTERRUPTED
        except ConfigError as error:
            print(f"Error: {error}", file=sys.stderr)
            return EXIT_CONFIG
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr)
            return EXIT_FAILED
        return 0

    return wrapped


def run_app(main: Callable[[Sequence[str]], None]) -> None:
    """`absl.app.run` with one-line errors; JAX's and Orbax's INFO lines only with --verbosity=0."""
    flags.FLAGS.set_default("verbosity", logging.WARNING)
    app.run(exit_on_user_errors(main))
