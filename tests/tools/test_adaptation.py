"""What a causal model is worth as a start. Oracle: the commands of the page of measurements and of --help."""

import re
import shlex

import pytest

from tests.forking import ROOT
from tools import adaptation

COMMANDS = [
    shlex.split(command)
    for text in (ROOT.joinpath("docs/measurements/adaptation.md").read_text(), adaptation.__doc__)
    for command in re.findall(r"python -m tools\.adaptation ([^`\n]*)", text.replace("\\\n", " "))
]


def test_commands_are_found():
    assert len(COMMANDS) == 5
    assert sum("--steps" in command for command in COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_documented_command_makes_a_run_without_annealing(command):
    """`curve` trains with open attention from the first step on."""
    given = adaptation.parsed(command)
    config = adaptation.settings(given)
    assert config.teacher.attention_annealing == 0
    assert config.teacher.init_from == given.init_from
    assert config.teacher.train.num_steps == max(given.steps)
    assert config.data.length == given.length


def test_help_has_commands_as_they_are_typed_and_every_default(capsys):
    with pytest.raises(SystemExit):
        adaptation.parsed(["--help"])
    said = capsys.readouterr().out
    assert adaptation.__doc__.strip() in said
    assert said.count("default: ") == said.count("\n  --") - 1  # --workdir has none
