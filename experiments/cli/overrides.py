"""Config fields as a command line gives them, checked before absl checks them."""

import ast
import dataclasses
import functools
import re
import typing
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from sdtt_jax.config import nearest, require, unknown_field
from sdtt_jax.errors import ConfigError
from sdtt_jax.paths import as_path

# A flag that is defined here belongs to the module that asks for it, and is listed in that module's --help.
flags.disclaim_key_flags()
# The usual folder of the files that a flag names.
FOLDERS = {"config": Path("experiments/configs"), "spec": Path("launch/specs")}


class Source(NamedTuple):
    """Where a run's config comes from, so that its report can say how to repeat it."""

    # The config file, with what follows its colon; "" if there was none.
    file: str = ""
    # FIELD=VALUE for each --config.FIELD=VALUE; None: not known.
    overrides: tuple[str, ...] | None = None


UNKNOWN = Source()


def define_config_file(
    flag: str = "config",
    text: str = "The config file.",
    values: flags.FlagValues = flags.FLAGS,
    argv: Sequence[str] | None = None,
) -> flags.FlagHolder[Any]:
    """Defines a flag that names a config file, and flags for its fields, as `argv` gives them."""
    define = functools.partial(
        config_flags.DEFINE_config_file, flag, None, text, flag_values=values, lock_config=True
    )
    try:
        return define(sys_argv=None if argv is None else [*argv])
    except flags.Error:  # of a --flagfile, which is read again, and said, when the flags are parsed
        return define(sys_argv=[])


def source_of(flag: str = "config") -> Source:
    """The config file and the fields that the command line gave to a flag, after absl has read it."""
    given = config_flags.get_override_values(flags.FLAGS[flag])
    file = str(config_flags.get_config_filename(flags.FLAGS[flag]))
    return Source(file, tuple(f"{field}={value}" for field, value in given.items()))


def with_corpus(source: Source, corpus: str) -> Source:
    """The source of a config that gets its corpus from --corpus; raises `ConfigError` if it names another."""
    given = f"data.corpus={corpus}"
    others = [field for field in source.overrides or () if field.partition("=")[0] == "data.corpus"]
    for other in others:
        require(
            other == given,
            f"--corpus={corpus} and --config.{other} name two corpora; leave one of them out.",
        )
    return source if others else source._replace(overrides=(*(source.overrides or ()), given))


def check_fields(argv: Sequence[str], flag: str, kind: Any) -> None:
    """Checks a command line's config file and fields before absl does, whose errors are less clear.

    `flag` is the name in `--FLAG=FILE` and `--FLAG.FIELD=VALUE`, `kind` the dataclass that has the fields.
    """
    lists: set[str] = set()
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        file = re.fullmatch(rf"--?{flag}(?:=(.*))?", word)
        if file is not None:
            name = following if file[1] is None else file[1]
            path, colon, argument = name.partition(":")  # the argument of get_config
            there = "is no file of Python" if as_path(path).exists() else "there is no such file"
            require(
                as_path(path).is_file(), f"--{flag}={path}: {there}; {_hint(path, FOLDERS[flag])}"
            )
            takes_argument = _takes_argument(as_path(path), f"--{flag}={path}")
            require(
                takes_argument or not colon,
                f"--{flag}={name}: {path} takes no argument; leave {':' + argument!r} out.",
            )
        match = re.fullmatch(rf"--?(?:no)?{flag}\.([^=]*)(?:=.*)?", word, re.DOTALL)
        if match is not None:
            _check_field(match[1], flag, kind, lists)


def _check_field(path: str, flag: str, kind: Any, lists: set[str]) -> None:
    """Checks the dotted path of a field; `lists` are those that a command line has given values so far."""
    within, where = kind, flag
    for name in path.split("."):
        hints = typing.get_type_hints(within) if dataclasses.is_dataclass(within) else {}
        plain, bracket, _ = name.partition("[")
        if plain not in hints:
            raise unknown_field(within, plain, where)
        within, where = hints[plain], f"{where}.{plain}"
        require(
            not bracket, f"--{flag}.{path} sets a part of {where}; give all of it, --{where}=VALUE."
        )
    # ml_collections would make a group anew, with the defaults of its class in place of the file's values.
    require(
        not dataclasses.is_dataclass(within),
        f"{where} is a group of fields; give each by itself, --{where}.FIELD=VALUE.",
    )
    if typing.get_origin(within) is tuple:
        require(
            where not in lists,
            f"--{where} is given twice, which would join the two; give it once, with all its values.",
        )
        lists.add(where)


def _takes_argument(file: Path, where: str) -> bool:
    """Whether a file's `get_config` takes an argument, as far as its text tells; it must be Python."""
    try:
        source = file.read_bytes()
        compile(source, str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        said = re.sub(r" \(detected at line \d+\)", "", error.msg)
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise ConfigError(
            f"{where} is not Python ({said}{line}); fix it, or give another file."
        ) from None
    require(
        b"get_config" in source,
        f"{where} has no get_config, the function that returns the config; add it, or give another file.",
    )
    for entry in ast.parse(source).body:
        if isinstance(entry, ast.FunctionDef) and entry.name == "get_config":
            return bool(entry.args.posonlyargs or entry.args.args or entry.args.vararg)
    return True


def _hint(path: str, usual: Path) -> str:
    """The file that was probably meant, in the folder that was named or else in the usual one."""
    named = as_path(path).parent
    for folder in (named, usual):
        files = [file.name for file in folder.glob("*.py")] if folder.is_dir() else []
        if nearest(as_path(path).name, files):
            return nearest(as_path(path).name, files).replace("'", f"'{folder}/", 1)
    return f"{usual} holds some."


def settable(config: Any) -> dict[str, Any]:
    """Fields of a dataclass in the form in which each can be given on the command line.

    Tuples stay tuples, since lists cannot be given; None becomes a placeholder that knows the field's type.
    """
    fields = {}
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = settable(value)
        elif value is None:
            [kind] = [arg for arg in typing.get_args(hint) if arg is not type(None)]
            value = ml_collections.config_dict.placeholder(kind)
        fields[name] = value
    return fields
