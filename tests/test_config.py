"""Dataclasses from mappings and back. Oracle: the messages that a user should read."""

import dataclasses

import pytest

from sdtt_jax.config import differences, from_mapping, require, to_mapping
from sdtt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        require(self.width > 0, f"width must be positive, not {self.width}.")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    steps: tuple[int, ...] = (1, 2)
    name: str | None = None
    flag: bool = False


def test_nested_dataclasses_and_back():
    mapping = {"inner": {"width": 3, "rate": 2}, "steps": [4, 8], "name": "x", "flag": True}
    config = from_mapping(Outer, mapping)
    assert config == Outer(Inner(3, 2.0), (4, 8), "x", True)
    assert isinstance(config.inner.rate, float)
    plain = to_mapping(config)
    assert plain == {"inner": {"width": 3, "rate": 2.0}, "steps": [4, 8], "name": "x", "flag": True}
    assert from_mapping(Outer, plain) == config


def test_defaults_are_in_one_place():
    assert from_mapping(Outer, {"inner": {"width": 1}}) == Outer(Inner(1))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"inner": {"widht": 3}}, r"config\.inner\.widht is not a field .* 'width'"),
        ({"inner": {"width": 3}, "zzz": 1}, r"config\.zzz .* known fields: inner, steps"),
        ({}, r"config\.inner is missing"),
        ({"inner": {}}, r"config\.inner\.width is missing"),
        ({"inner": {"width": "3"}}, r"config\.inner\.width must be of type int, not '3'"),
        ({"inner": {"width": True}}, r"config\.inner\.width must be of type int"),
        ({"inner": {"width": 3}, "steps": 4}, r"config\.steps must be a list"),
        ({"inner": {"width": 3}, "steps": [1, 2.5]}, r"config\.steps\[1\] must be of type int"),
        ({"inner": {"width": 3}, "flag": 1}, r"config\.flag must be of type bool"),
        ({"inner": {"width": 0}}, r"config\.inner: width must be positive, not 0"),
        ({"inner": 7}, r"config\.inner must be a group of fields"),
        ({"inner": {"width": 3}, "name": 5}, r"config\.name must be of type str"),
    ],
)
def test_what_is_wrong_and_where(mapping, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, mapping)


def test_none_is_a_value_where_the_field_allows_it():
    assert from_mapping(Outer, {"inner": {"width": 1}, "name": None}).name is None
    with pytest.raises(ConfigError, match="rate"):
        from_mapping(Outer, {"inner": {"width": 1, "rate": None}})


def test_differences_name_every_leaf():
    old = {"a": {"b": 1, "c": [1]}, "d": "x"}
    new = {"a": {"b": 2, "c": [1]}, "e": None}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "d: 'x' -> '(absent)'",
        "e: '(absent)' -> None",
    ]
    assert differences(old, old) == []
