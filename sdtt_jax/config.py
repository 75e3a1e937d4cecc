"""Frozen dataclasses from plain mappings and back, and the checks that validate their fields.

A `__post_init__` says what its fields must be: `positive(self, "num_steps")`, `one_of(self, kind=KINDS)`. The
checks of numbers also take values that are not fields: `positive(batch_size=batch_size)`. Each check raises
`ConfigError` with a sentence that names the field, its value and what would work.
"""

import dataclasses
import difflib
import functools
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from sdtt_jax.errors import ConfigError

T = TypeVar("T")
# Every int32 is below this.
INT32 = 2**31
# Stands in `differences` for a value that only one of two configs has.
ABSENT = "(absent)"
# Least normal and greatest float32; XLA flushes smaller numbers to 0, and greater ones are infinite.
LEAST, MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
# The largest seed. Beyond what an array can have along a side, NumPy and JAX fail, each in its own words.
MOST_COUNTED = 2**32 - 1


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Builds the dataclass `cls` from `mapping`, nested dataclasses included.

    Args:
      cls: a frozen dataclass; its `__post_init__` validates values.
      mapping: field name to value; sequences become tuples where the field says so.
      where: the dotted path that errors name, for example `"config.teacher"`.

    Raises:
      ConfigError: naming the unknown, missing or ill-typed field.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} must be a group of fields, not {mapping!r:.60}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    check_fields(cls, mapping, where)
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing; set it in the config.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain, JSON-ready form of a config dataclass; `from_mapping` inverts it."""
    return _plain(dataclasses.asdict(config))


def changed(config: T, **fields: Any) -> T:
    """A copy of the config with some fields changed; a dict changes fields of a nested config.

    Examples:
      >>> import sdtt_jax
      >>> changed(sdtt_jax.TrainConfig(10, 8), optimizer={"warmup_steps": 2}).optimizer.warmup_steps
      2

    Raises:
      ConfigError: there is no such field, or the changed config is refused.
    """
    return _changed(config, fields, type(config).__name__)


def _changed(config: Any, fields: Mapping[str, Any], where: str) -> Any:
    if not dataclasses.is_dataclass(config):
        raise ConfigError(f"{where} is a single value, not a group of fields; give {where}=VALUE.")
    check_fields(type(config), fields, where)
    values = {
        name: _changed(getattr(config, name), value, f"{where}.{name}")
        if isinstance(value, dict)
        else value
        for name, value in fields.items()
    }
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `field: old -> new` for every leaf in which two plain configs differ.

    Args:
      old, new: from `to_mapping`.
      prefix: put before the name of every field.
    """
    lines = []
    for name in sorted(set(old) | set(new)):
        path = f"{prefix}{name}"
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path + ".")
        elif _mappings(before) and _mappings(after):
            if len(before) != len(after):
                lines.append(f"{path}: {len(before)} -> {len(after)} entries")
            for index, both in enumerate(zip(before, after, strict=False)):
                lines += differences(*both, f"{path}[{index}].")
        elif before != after:
            lines.append(f"{path}: {before!r} -> {after!r}")
    return lines


def _mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value)


def check_fields(cls: type, names: Iterable[Any], where: str) -> None:
    """Raises `unknown_field` for the first of `names` that is not a field of the dataclass `cls`."""
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    for name in names:
        if name not in fields:
            raise unknown_field(cls, str(name), where)


def unknown_field(config: Any, name: str, where: str) -> ConfigError:
    """The error for a field that does not exist; it names the one that was probably meant.

    Args:
      config: the dataclass, or single value, that lacks the field.
      name: the unknown field.
      where: the dotted path of `config`, for example "config.teacher".
    """
    if not dataclasses.is_dataclass(config):
        return ConfigError(f"{where} has no field {name!r}; it is a single value.")
    fields = [field.name for field in dataclasses.fields(config) if field.init]
    hint = nearest(name, fields) or f"known fields: {', '.join(fields)}."
    return ConfigError(f"{where} has no field {name!r}; {hint}")


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` with the closest of `names` to `name`; "" if none is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any = None, *names: str, **values: float) -> None:
    """Checks that the fields `names` of `config`, and `values`, are above 0 and finite, in float32 too."""
    _check(lambda value: value > 0, "be positive", config, names, values)
    _check(lambda value: value >= LEAST, "be 1.2e-38 or more, as in float32", config, names, values)
    _finite(config, names, values)


def at_least(least: float, config: Any = None, *names: str, **values: float) -> None:
    """Checks that the fields `names` of `config`, and `values`, are `least` or more, finite in float32."""
    _check(lambda value: value >= least, f"be at least {least}", config, names, values)
    _finite(config, names, values)


def whole(least: int, config: Any = None, *names: str, **values: Any) -> None:
    """Checks that the fields `names` of `config`, and `values`, are whole: `least` to `MOST_COUNTED`."""
    _check(lambda value: operator.index(value) == value, "be a whole number", config, names, values)
    what = "be positive" if least == 1 else f"be at least {least}"
    _check(lambda value: value >= least, what, config, names, values)
    what = f"be {MOST_COUNTED} or less"
    _check(lambda value: value <= MOST_COUNTED, what, config, names, values)


def flags(config: Any = None, *names: str, **values: Any) -> None:
    """Checks that the fields `names` of `config`, and `values`, are True or False; a text counts as True."""
    for name, value in _named(config, names, values):
        require(isinstance(value, bool), f"{name} must be True or False, not {value!r:.60}.")


def instance(kind: type, **values: Any) -> None:
    """Checks that each of `values` is an instance of `kind`."""
    for name, value in values.items():
        called = f"{kind.__name__}, not {value!r:.60}; pass {kind.__name__}(…)"
        require(isinstance(value, kind), f"{name} must be of type {called}.")


def each(check: Callable[..., None], *bounds: Any, **values: Iterable[Any]) -> None:
    """Runs a check of this module on each of several values, by name: `each(whole, 1, sizes=(2, 3))`."""
    for name, several in values.items():
        for value in several:
            check(*bounds, **{name: value})


def given(config: Any, *names: str) -> list[str]:
    """Those of the fields `names` that are not None in `config`, to be passed to the checks above."""
    return [name for name in names if getattr(config, name) is not None]


def within(interval: str, config: Any = None, *names: str, **values: float) -> None:
    """Checks that the fields `names` of `config`, and `values`, lie in `interval`, and are finite in float32.

    Args:
      interval: for example "[0, 1)", which contains 0 and not 1, or "(0, inf)".
      config: a dataclass, or None.
      *names: fields of `config`.
      **values: other values, by name.
    """
    _check(functools.partial(inside, interval), f"lie in {interval}", config, names, values)
    _finite(config, names, values)


def inside(interval: str, value: float) -> bool:
    """Whether `value` lies in an interval such as "[0, 1)"; False for NaN and for integers beyond float64."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    # Float32 rounds what lies nearer to `high` up to it: 0.99999999 is 1.
    below = value < high * (1 - 2.0**-25) if interval[-1] == ")" else value <= high
    return above and below


def number(kind: Callable[[str], T], text: str) -> T:
    """The number that a text spells; `ValueError` also for "1_0", which Python reads as 10."""
    if "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return kind(text)


def one_of(config: Any, **choices: Collection[str]) -> None:
    """Checks that each of the named fields of `config` is one of its choices."""
    for name, allowed in choices.items():
        choose(name, getattr(config, name), allowed)


def choose(name: str, value: Any, choices: Collection[str]) -> None:
    """Checks that `value`, called `name`, is one of `choices`."""
    if value not in choices:
        near = nearest(str(value), choices)
        hint = f" ({near})" if near else ""
        raise ConfigError(f"{name}={value!r} is unknown{hint}; choose one of {', '.join(choices)}.")


def check_types(config: Any) -> None:
    """Checks that every field of `config` has the type that its dataclass declares."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _convert(hints[field.name], getattr(config, field.name), field.name)


def _named(
    config: Any, names: Iterable[str], values: Mapping[str, Any]
) -> Iterable[tuple[str, Any]]:
    """The fields `names` of `config`, and `values`, each with its name."""
    return ({name: getattr(config, name) for name in names} | dict(values)).items()


def _finite(config: Any, names: Iterable[str], values: Mapping[str, float]) -> None:
    _check(lambda value: value < math.inf, "be finite", config, names, values)
    _check(lambda value: value <= MOST, "be 3.4e38 or less, as in float32", config, names, values)


def _check(
    holds: Callable[[Any], bool],
    what: str,
    config: Any,
    names: Iterable[str],
    values: Mapping[str, float],
) -> None:
    for name, value in _named(config, names, values):
        hint = ""
        try:
            hash(value)  # fails for an array, as would hashing the config
            held = not isinstance(value, bool) and holds(value)  # True does not count as 1
        except TypeError:  # a string, say
            held = False
            if hasattr(value, "dtype"):
                plain = f"a plain number, such as {name}.item(), not an array"
                hint = f"; give {plain}: under jit it must be a constant"
        if not held:
            raise ConfigError(f"{name} must {what}, not {_shown(value)}{hint}.")
        if name in names and hasattr(value, "item"):
            # With x64 a scalar of NumPy widens every array that it meets; and JSON cannot hold it.
            object.__setattr__(config, name, value.item())


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python does not write whole numbers beyond 4300 digits
        return "a number of thousands of digits"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, where)  # type: ignore[arg-type]
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        [inner] = [arg for arg in args if arg is not type(None)]
        return _convert(inner, value, where)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise ConfigError(
                f"{where} must be a number that float64 holds, not {_shown(value):.60}."
            )
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}.")
    return value
