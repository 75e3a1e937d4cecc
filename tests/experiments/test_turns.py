"""The order in which a run's stages take their turns, and what those say that run twice."""

from experiments.configs.smoke import smoke
from experiments.settings import config_dict
from experiments.stages.runner import STAGE_NAMES, open_run, turns


def test_a_first_distiller_is_reported_before_the_next_begins(tmp_path):
    """Once the next one has begun, or where no report is asked for, the stages run in their order."""
    config = config_dict(smoke())
    config.distillers = ("sdtt", "coupled")
    first, then = [*STAGE_NAMES], [*STAGE_NAMES[STAGE_NAMES.index("distill") :]]

    def names(run, asked):
        return [stage.name for stage in turns(run, asked)]

    with open_run(config, tmp_path / "run") as run:
        assert names(run, STAGE_NAMES) == first + then
        assert names(run, ["distill", "evaluate"]) == then[:2]
        run.workdir.round(1, "coupled").mkdir(parents=True)
        assert names(run, STAGE_NAMES) == first


def test_what_was_said_of_a_model_is_not_repeated(tmp_path, capsys):
    """Of two models the same may be said: a student that has learnt nothing has its teacher's perplexity."""
    with open_run(config_dict(smoke()), tmp_path / "run") as run:
        for name in ("teacher", "student", "teacher"):
            run.log_once(name, "perplexity 3")
    assert capsys.readouterr().out == "perplexity 3\n" * 2
