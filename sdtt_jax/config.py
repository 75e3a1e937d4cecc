"""Frozen, validated dataclasses from plain mappings, and back."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sdtt_jax.errors import ConfigError

T = TypeVar("T")


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
        raise ConfigError(f"{where} must be a group of fields, not {mapping!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in mapping:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}."
            raise ConfigError(f"{where}.{name} is not a field of the config; {hint}")
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `field: old -> new` for every leaf in which two plain configs differ."""
    lines = []
    for name in sorted(set(old) | set(new)):
        path = f"{prefix}{name}"
        before, after = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path + ".")
        elif before != after:
            lines.append(f"{path}: {before!r} -> {after!r}")
    return lines


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


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
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}.")
    return value
