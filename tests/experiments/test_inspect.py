"""The command that says what a checkpoint was taken for. Oracle: the guide on sequences."""

from tests.experiments.instructed import instructed
from tests.forking import run_module


def test_a_model_of_instructions_is_inspected_on_those_of_its_run(tmp_path):
    """Without a flag it was asked for the loss of the Bible, and told to leave the flag out."""
    path, run = instructed(tmp_path)
    flags = [f"--checkpoint={run / 'teacher'}", "--texts=2", "--num_maskings=1"]
    code, out, err = run_module("experiments.inspect", flags)
    assert code == 0, err
    assert "loss on validation split of the run, 2 texts of 32 tokens" in out
    code, _, err = run_module("experiments.inspect", [*flags, f"--held_out={path}"])
    assert code == 2
    assert "leave the flag out, with a checkpoint in its run's folder" in err
