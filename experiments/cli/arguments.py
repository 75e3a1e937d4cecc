"""The words of a command line before absl reads them, and absl's errors in plainer words."""

import dataclasses
import itertools
import os
import re
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from sdtt_jax.errors import ConfigError
from sdtt_jax.paths import as_path, is_misread

# Flags that name config files.
CONFIG_FLAGS = ("config", "spec")

# Errors of which the message alone does not say what they are, or which have none.
_NAMED = (LookupError, ArithmeticError, AssertionError, RuntimeError)
# Errors of flags, and of the config files that run while flags are parsed.
IN_FLAGS = (
    flags.Error,
    ConfigError,
    OSError,
    AttributeError,
    TypeError,
    ValueError,
    ImportError,
    NameError,
    SyntaxError,
    *_NAMED,
)


# How the errors of absl's flags begin, and what the value should have been.
_KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean": "true or false",
}


NO_CONFIG_DICT = (
    "get_config returns a dataclass, whose fields no flag can change; let it return config_dict(…) of that, "
    "from experiments.settings."
)
# What ml_collections puts before the stack of an error of a config file.
_TRACED = "Error whilst parsing config file:\n\n"


def config_files(argv: Sequence[str]) -> list[str]:
    """`argv` with `~` expanded in the names of config files, and without those that a later one replaces.

    absl opens them under the names given, and ml_collections takes two of them for two flags. A script such
    as launch/demo.sh gives one, and its caller may give another.
    """
    words = list(argv)
    ends = words.index("--") if "--" in words else len(words)
    given = set()
    for place in reversed(range(ends)):
        flag, equals, value = words[place].partition("=")
        name = flag.lstrip("-")
        if name not in CONFIG_FLAGS or not flag.startswith("-"):
            continue
        if name in given:
            del words[place : place + (1 if equals else 2)]
        elif equals and value.startswith("~"):
            words[place] = f"{flag}={as_path(value)}"
        elif not equals and words[place + 1 : place + 2]:
            following = words[place + 1]
            words[place + 1] = str(as_path(following)) if following[:1] == "~" else following
        given.add(name)
    return words


def require_utf8(argv: Sequence[str]) -> None:
    """Rejects a flag that is not UTF-8, or not read as such: there are no characters in it, or others."""
    for before, argument in itertools.pairwise(["", *argv]):
        fault = "is UTF-8, which this locale's encoding is not; set PYTHONUTF8=1."
        if not is_misread(argument):
            # Python turns each bad byte into half of a surrogate pair.
            if argument.encode("utf-8", "replace").decode() == argument:
                continue
            given = os.fsencode(argument.partition("=")[2] or argument)
            fault = f"is not UTF-8 ({given!r}); give it in UTF-8."
        flag = next((text for text in (argument, before) if text.startswith("-")), "An argument")
        raise ConfigError(f"{flag.partition('=')[0]} {fault}")


def clearer(message: str) -> str:
    """absl's error, clearer where a value is of the wrong kind, and without the stack of a config file."""
    traced, _, trace = message.partition(_TRACED)
    if trace:
        # Of the last stack, if one error led to another: what was raised, and from where in the config file.
        stack = trace.rpartition("Traceback (most recent call last):\n")[2].rstrip()
        frames = re.findall(r'^  File "(.+)", line (\d+)', stack, re.MULTILINE)
        raised = "\n".join(itertools.dropwhile(lambda line: line[:1] == " ", stack.split("\n")))
        return f"{traced}{raised}{_place(frames)}"
    found = re.fullmatch(r"flag (--[^=]+=.*?): (.*)", message, re.DOTALL)
    kind = next(
        (what for start, what in _KINDS.items() if found and found[2].startswith(start)), ""
    )
    return f"{found[1]} must be {kind}." if found and kind else message


def in_words(error: Exception) -> str:
    """The message of a flag's error; with file and line if the config file raised it."""
    frames = [(at.filename, at.lineno) for at in traceback.extract_tb(error.__traceback__)]
    # The place of a syntax error is in its message, and so is that of what absl raises again.
    place = "" if isinstance(error, SyntaxError | flags.Error) else _place(frames)
    if isinstance(error, dataclasses.FrozenInstanceError) and not place:
        return f"--config: {NO_CONFIG_DICT}"
    if isinstance(error, _NAMED):
        return f"{type(error).__name__}: {error}".removesuffix(": ") + place
    if isinstance(error, flags.UnrecognizedFlagError):
        if "spec" in flags.FLAGS:
            return (
                f"{error}; fields of the spec are --spec.FIELD, and options of the run follow `--`"
            )
        if "config" in flags.FLAGS and error.flagname.startswith("config."):
            return f"--{error.flagname} is a field of a config; give --config=FILE too"
        if "config" in flags.FLAGS and "." in error.flagname:
            return f"{error}. Did you mean: config.{error.flagname} ?"
    return clearer(str(error).removeprefix("ERROR:: ")) + place


def _place(frames: Sequence[tuple[str, Any]]) -> str:
    """` (FILE, line N)`: the innermost line of the config file in a stack; "" if none is on it."""
    loaders = [at for at, (file, _) in enumerate(frames) if file == config_flags.__file__]
    # Python's own loader runs the file.
    within = [frame for frame in frames[max(loaders, default=len(frames)) :] if frame[0][:1] != "<"]
    found = [frame for frame in within[1:] if frame[0] == within[1][0]]
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""
