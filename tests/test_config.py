"""Dataclasses from mappings and back. Oracle: the messages that a user should read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.config import (
    at_least,
    changed,
    check_types,
    choose,
    differences,
    each,
    flags,
    from_mapping,
    instance,
    one_of,
    positive,
    to_mapping,
    whole,
    within,
)
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.errors import ConfigError
from tests.worlds import TableDenoiser, random_table


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        positive(self, "width")


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
        ({"inner": {"widht": 3}}, r"config\.inner has no field 'widht'; did you mean 'width'"),
        (
            {"inner": {"width": 3}, "zzz": 1},
            r"config has no field 'zzz'; known fields: inner, steps",
        ),
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
        ({"inner": {"width": 3, "rate": 10**400}}, r"rate must be a number that float64 holds"),
    ],
)
def test_what_is_wrong_and_where(mapping, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, mapping)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zzz": 1}, r"^Outer has no field 'zzz'; known fields: inner, steps"),
        ({"inner": {"widht": 3}}, r"^Outer\.inner has no field 'widht'; did you mean 'width'"),
        ({"steps": {"width": 3}}, r"^Outer\.steps is a single value, not a group of fields"),
    ],
)
def test_a_change_of_what_is_no_field_is_named(fields, message):
    """It was a `TypeError` or an `AttributeError` of Python."""
    with pytest.raises(ConfigError, match=message):
        changed(from_mapping(Outer, {"inner": {"width": 1}}), **fields)


def test_the_wrong_value_of_a_group_is_cut():
    with pytest.raises(ConfigError, match=r"must be a group of fields, not .{60}\.$"):
        from_mapping(Outer, {"inner": "x" * 8000})


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
    texts = [{"start": "a", "temperature": t} for t in (0.5, 1.0, 3.0)]
    assert differences({"texts": texts}, {"texts": texts[1:]}) == [
        "texts: 3 -> 2 entries",
        "texts[0].temperature: 0.5 -> 1.0",
        "texts[1].temperature: 1.0 -> 3.0",
    ]


@dataclasses.dataclass(frozen=True)
class Sampler:
    kind: str = "grid"
    steps: int = 4
    share: float = 0.5


@pytest.mark.parametrize(
    "check",
    [
        lambda: positive(Sampler(), "steps", "share"),
        lambda: positive(batch_size=1),
        lambda: at_least(4, Sampler(), "steps"),
        lambda: whole(1, steps=2**32 - 1),
        lambda: at_least(0, top_k=0),
        lambda: within("(0, 0.5]", Sampler(), "share"),
        lambda: within("[0, inf)", time=0.0),
        lambda: one_of(Sampler(), kind=("grid", "leap")),
        lambda: choose("estimator", "times", {"times": 1}),
        lambda: check_types(Sampler()),
    ],
)
def test_what_works_passes(check):
    check()


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: positive(Sampler(steps=0), "share", "steps"), "steps must be positive, not 0."),
        (lambda: positive(rate=float("nan")), "rate must be positive, not nan."),
        (lambda: positive(rate=float("inf")), "rate must be finite, not inf."),
        (lambda: positive(rate=True), "rate must be positive, not True."),
        (lambda: at_least(0, rate=float("inf")), "rate must be finite, not inf."),
        (lambda: positive(eps=1e-46), "eps must be 1.2e-38 or more, as in float32, not 1e-46."),
        (lambda: positive(rate=1e39), "rate must be 3.4e38 or less, as in float32, not 1e+39."),
        (lambda: at_least(0, b=1e39), "b must be 3.4e38 or less, as in float32, not 1e+39."),
        (lambda: within("[0, inf)", t=1e39), "t must be 3.4e38 or less, as in float32, not 1e+39."),
        (lambda: positive(**{"--repeats": -1}), "--repeats must be positive, not -1."),
        (lambda: at_least(0, top_k=-1), "top_k must be at least 0, not -1."),
        (lambda: at_least(0, top_k=None), "top_k must be at least 0, not None."),
        (lambda: whole(0, top_k=-1), "top_k must be at least 0, not -1."),
        (lambda: whole(1, Sampler(steps=0), "steps"), "steps must be positive, not 0."),
        (lambda: each(whole, 1, steps=(2, 0)), "steps must be positive, not 0."),
        (lambda: whole(1, steps=2.0), "steps must be a whole number, not 2.0."),
        (lambda: whole(1, steps=2**32), "steps must be 4294967295 or less, not 4294967296."),
        (
            lambda: whole(1, steps=10**5000),
            "steps must be 4294967295 or less, not a number of thousands of digits.",
        ),
        (lambda: whole(1, steps=True), "steps must be a whole number, not True."),
        (lambda: whole(1, steps="2"), "steps must be a whole number, not '2'."),
        (lambda: within("(0, 1]", top_p=0.0), "top_p must lie in (0, 1], not 0.0."),
        (
            lambda: within("[0, 1)", Sampler(share=1.0), "share"),
            "share must lie in [0, 1), not 1.0.",
        ),
        (
            lambda: one_of(Sampler(kind="gird"), kind=("grid", "leap")),
            "kind='gird' is unknown (did you mean 'grid'?); choose one of grid, leap.",
        ),
        (lambda: choose("by", 7, ("a", "b")), "by=7 is unknown; choose one of a, b."),
        (lambda: flags(stop="no"), "stop must be True or False, not 'no'."),
        (lambda: flags(Sampler(steps=1), "steps"), "steps must be True or False, not 1."),
        (
            lambda: instance(Sampler, config=4),
            "config must be of type Sampler, not 4; pass Sampler(…).",
        ),
        (lambda: check_types(Sampler(steps=True)), "steps must be of type int, not True."),
    ],
)
def test_what_does_not_is_named_with_its_value(check, message):
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == message


@pytest.mark.parametrize("wrap", [jnp.float32, np.array, lambda x: np.array([x, x])])
def test_an_array_is_told_from_a_wrong_number(wrap):
    """Even an array of a right value: the config could not be hashed, and `jit` takes it as a constant."""
    with pytest.raises(
        ConfigError, match=r"must be positive, not .*such as rate\.item\(\), not an "
    ):
        positive(rate=wrap(0.5))
    with pytest.raises(ConfigError, match="under jit it must be a constant"):
        jax.jit(lambda rate: positive(rate=rate))(0.5)


WORLD, PARAMS = MaskedDiffusion(TableDenoiser(), sdtt_jax.make_schedule()), random_table(0)
X0, KEY = np.zeros((1, 2), np.int32), jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda wrong: sdtt_jax.distillation_terms(WORLD, 0, 0, X0, 0.5, KEY, wrong), "Distill"),
        (lambda wrong: sdtt_jax.teacher_targets(WORLD, 0, KEY, X0, 0, 0.5, wrong), "Distill"),
        (lambda wrong: sdtt_jax.next_round(wrong, sdtt_jax.Student(0), 1), "Distill"),
        (lambda wrong: sdtt_jax.round_dt(wrong, 1), "Distill"),
        (lambda wrong: sdtt_jax.denoising_terms(WORLD, PARAMS, X0, KEY, wrong or 1), "Nelbo"),
        (lambda wrong: sdtt_jax.sample(WORLD, PARAMS, KEY, X0, wrong), "Sampler"),
        (lambda wrong: sdtt_jax.make_schedule(wrong or 1), "Schedule"),
    ],
)
@pytest.mark.parametrize("wrong", [None, {"vocab_size": 3}, "cosine"], ids=str)
def test_what_is_no_config_is_named(call, named, wrong):
    with pytest.raises(ConfigError, match=f"config must be of type {named}Config, not .*; pass "):
        call(wrong)


def test_a_network_is_made_of_its_config():
    with pytest.raises(ConfigError, match=r"such as DenoiserConfig\(…\), not {'vocab_size': 3}"):
        sdtt_jax.Denoiser({"vocab_size": 3})


@pytest.mark.parametrize(
    ("denoiser", "schedule", "named"),
    [
        ("a", WORLD.schedule, r"denoiser must be a network such as Denoiser\(config\), not 'a'"),
        (TableDenoiser(), "b", "schedule must be of type Schedule, not 'b'"),
    ],
)
def test_a_model_is_made_of_a_network_and_a_schedule(denoiser, schedule, named):
    with pytest.raises(ConfigError, match=named):
        MaskedDiffusion(denoiser, schedule)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (sdtt_jax.DistillConfig, "use_ema_on_growth"),
        (sdtt_jax.DistillConfig, "reset_optimizer_on_growth"),
        (sdtt_jax.DistillConfig, "antithetic"),
        (sdtt_jax.DistillConfig, "reference_times"),
        (sdtt_jax.NelboConfig, "antithetic"),
        (sdtt_jax.NelboConfig, "importance"),
        (sdtt_jax.DenoiserConfig, "time_conditioned"),
        (CoupledDistillConfig, "hindsight"),
        (CoupledDistillConfig, "independent"),
    ],
)
def test_a_text_is_no_truth_value(kind, name):
    with pytest.raises(ConfigError, match=f"{name} must be True or False, not 'no'"):
        kind(**{name: "no"})


def test_numbers_of_numpy_become_plain_ones():
    """With x64 they would widen every array that they meet. Oracle: JSON, and Python's types."""
    config = sdtt_jax.SamplerConfig(np.int64(4), temperature=np.float64(0.7), top_k=np.int32(2))
    assert [type(each) for each in (config.num_steps, config.temperature)] == [int, float]
    assert config == sdtt_jax.SamplerConfig(4, temperature=0.7, top_k=2)
    assert json.dumps(to_mapping(config))
