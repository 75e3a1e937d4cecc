"""Errors for users: one complete sentence each, which names the field, file or leaf at fault.

Entry points turn a `UserError` into one line on stderr and a non-zero exit status, without a traceback.
"""

import os

# Exit status of an entry point that a signal stopped, its state saved: 75, "try again" in sysexits.h.
EXIT_INTERRUPTED = os.EX_TEMPFAIL


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A config field, or a combination of fields, that cannot work."""


class DataError(UserError):
    """A corpus, tokenizer or data file that is missing, damaged or unusable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class MismatchError(CheckpointError, ConfigError):
    """A checkpoint that is whole, but of another model or run than the config asks for."""


def first_line(error: BaseException, silent: str = "") -> str:
    """The first line of another library's message, without its full stop; if empty, `silent` or the class."""
    lines = str(error).strip().splitlines() or [silent or type(error).__name__]
    return lines[0].rstrip(" .")
