"""Numbers in configs. Oracle: what no field can mean: a fraction or -2 of what is counted, infinity, NaN.

Fields are found by their types, so that one that is added tomorrow is tested too.
"""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import experiments
import launch
import sdtt_jax
from launch.pods.spec import PodSpec
from sdtt_jax.data.loader import Mixture, Split
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.continuations import Choice
from sdtt_jax.evaluation.gain import GainConfig
from sdtt_jax.laboratory.world import sticky_world
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.exiting import Exiting
from sdtt_jax.networks.retrieval import Retrieving
from sdtt_jax.training.config import TrainConfig

_SPLIT = Split("train", 8, None, None)
# Examples of the configs that have no defaults.
EXAMPLES: dict[str, Any] = {
    "Choice": Choice("one and", (" one", " two"), 1),
    "Exiting": Exiting(Denoiser(DenoiserConfig(11, 8)), 0.9),
    "GainConfig": GainConfig(DistillConfig(), 2),
    "Mixture": Mixture((_SPLIT, _SPLIT), (1.0, 2.0)),
    "PodSpec": PodSpec(workdir="gs://bucket/run"),
    "Retrieving": Retrieving(Denoiser(DenoiserConfig(11, 8))),
    "SamplerConfig": SamplerConfig(4),
    "TrainConfig": TrainConfig(10, 8),
    "World": sticky_world(),
}


# Fields where 0 is not a number of things, but means none, all, or not known yet.
ZERO = {
    "CoupledDistillConfig.num_distill_calls", "CoupledStage.num_trajectories", "DataConfig.skip_bad",
    "Decoding.top_k",
    "EvaluationConfig.validation_sequences", "Filters.top_k", "JudgeConfig.skeleton", "LlamaConfig.head_dim",
    "LlamaConfig.mlp_dim", "LlamaConfig.num_kv_heads", "LoraConfig.rank", "OptimizerConfig.warmup_steps",
    "PodSpec.max_restarts", "Settings.exit_training_steps", "Settings.held_out_texts", "Settings.length",
    "Settings.num_prompts", "Stop.stable", "TeacherConfig.attention_annealing", "TeacherConfig.init_layers",
    "TrainConfig.check_replicas_every", "TrainConfig.keep_every", "TransformerConfig.length",
    "TransformerConfig.vocab_size",
}  # fmt: skip
# Numbers that name something; the first is 0.
NAMES = ("answer", "bos", "bos_id", "eos", "eos_id", "mark_id", "seed")


def modules() -> Iterator[types.ModuleType]:
    """All modules but the entry points: importing them would define their flags, and absl checks those."""
    for package in (sdtt_jax, experiments, launch):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            spec = found.module_finder.find_spec(found.name, None)
            if '__name__ == "__main__"' not in spec.loader.get_source(found.name):
                yield importlib.import_module(found.name)


def number(hint: Any) -> type | None:
    """int or float, if a field of this type holds one or several such numbers, or perhaps none."""
    if hint in (int, float):
        return hint
    return next(filter(None, map(number, typing.get_args(hint))), None)


def fields() -> Iterator[tuple[type, str, type]]:
    """Dataclass, name and type of every field of a config that holds numbers.

    A config is a frozen dataclass that checks its fields, or whose name ends in `Config`.
    """
    for module in modules():
        for name, kind in inspect.getmembers(module, inspect.isclass):
            mine = dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
            checks = hasattr(kind, "__post_init__") or name.endswith("Config")
            if mine and checks and kind.__dataclass_params__.frozen:
                hints = typing.get_type_hints(kind)
                for field in dataclasses.fields(kind):
                    of = number(hints[field.name])
                    if field.init and of:
                        yield kind, field.name, of


FIELDS = list(fields())


def filled(example: Any, value: Any, most: int) -> Any:
    """The value; for a field that holds several, the value in place of each of the first `most`."""
    if not isinstance(example, tuple):
        return value
    return tuple(filled(item, value, most) for item in (example or (None,))[:most])


def refusal(kind: type, name: str, value: Any) -> str:
    """The error of a config about a value of one of its fields; empty if it takes the value."""
    example = EXAMPLES[kind.__name__] if kind.__name__ in EXAMPLES else kind()
    said = []
    for most in (1, 100):
        try:
            dataclasses.replace(example, **{name: filled(getattr(example, name), value, most)})
        except ConfigError as error:
            said.append(str(error))
        else:
            return ""
    return said[-1]


def owner(kind: type, name: str) -> str:
    """`CLASS.FIELD`, where the class is the one that introduced the field."""
    having = (base for base in reversed(kind.__mro__) if name in inspect.get_annotations(base))
    return f"{next(having).__name__}.{name}"


def taken(of: type, value: Any) -> list[str]:
    """Fields that take a value, or refuse it without naming the field."""
    return [
        f"{kind.__name__}.{name}"
        for kind, name, type_of_field in FIELDS
        if type_of_field is of and name not in refusal(kind, name, value)
    ]


def test_the_fields_are_found():
    names = {f"{kind.__name__}.{name}" for kind, name, _ in FIELDS}
    assert {"DenoiserConfig.cond_dim", "MauveConfig.num_buckets", "World.transition"} <= names
    assert len(FIELDS) > 250


def test_what_the_fields_hold_is_taken():
    """Otherwise, the values in the tests below would be refused for another reason."""
    for kind, name, _ in FIELDS:
        example = EXAMPLES[kind.__name__] if kind.__name__ in EXAMPLES else kind()
        dataclasses.replace(example, **{name: getattr(example, name)})


@pytest.mark.parametrize("value", [8.5, -2, True, math.nan])
def test_what_is_counted_is_a_whole_number(value):
    assert taken(int, value) == []


def test_zero_is_taken_where_it_has_a_meaning():
    found = {
        owner(kind, name)
        for kind, name, of in FIELDS
        if of is int and name not in NAMES and not refusal(kind, name, 0)
    }
    assert found == ZERO


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True])
def test_what_is_measured_is_a_number(value):
    assert taken(float, value) == []


def test_what_is_measured_is_finite_in_float32():
    """Larger numbers become infinite there, and their products with 0 NaN."""
    assert taken(float, 1e39) == []
