"""What the processes of a job must have in common. Threads stand in for them. Oracle: the message."""

import re

import pytest
from absl import flags

from experiments.cli.app import require_same_flags
from sdtt_jax.errors import ConfigError
from tests.parallel.threads import in_threads


def flags_of(*argv):
    given = flags.FlagValues()
    flags.DEFINE_integer("seed", 0, "", flag_values=given)
    flags.DEFINE_string("output", None, "", flag_values=given)
    flags.DEFINE_boolean("verbose", False, "", flag_values=given, module_name="absl.logging")
    given(["program", *argv])
    return given


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--seed=0",), None),
        (("--seed=0", "--output=b", "--verbose"), None),
        (
            ("--seed=7",),
            r"command of process 1 and of process 0 differ .*\(--seed: 0 -> 7\); give all .* same flags",
        ),
        ((), r"\(--seed: 0 -> '\(absent\)'\)"),
    ],
)
def test_all_processes_have_the_same_flags(monkeypatch, other, said):
    given = flags_of("--seed=0", "--output=a"), flags_of(*other)
    found = in_threads(monkeypatch, *(lambda g=each: require_same_flags(g) for each in given))
    if said is None:
        assert found == [None, None]
    for error in found if said else ():
        assert isinstance(error, ConfigError)
        assert re.search(said, str(error)), error
