"""The flags of experiments.run, for itself and for those that start it elsewhere."""

from collections.abc import Sequence

from absl import flags

from experiments.cli.overrides import define_config_file
from experiments.stages.runner import STAGE_NAMES
from sdtt_jax.config import choose, require

# A flag that is defined here belongs to the module that asks for it, and is listed in that module's --help.
flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None) -> None:
    """Defines the flags in `values`; `argv`, the program first, is the command line that sets the config."""
    define_config_file(values=values, argv=argv)
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run, local or gs://…; made if it is missing.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "stages",
        [],
        f"Stages to run, separated by commas: {', '.join(STAGE_NAMES)}; all of them by default.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "replay",
        None,
        "Stage of which one step is taken twice and compared: teacher, distill/2, distill/2@57.",
        flag_values=values,
    )


def chosen_stages(values: flags.FlagValues = flags.FLAGS) -> Sequence[str]:
    """The stages to run, all by default; `ConfigError` for an unknown one, or together with --replay."""
    require(
        values.replay is None or not values["stages"].present,
        f"With --replay={values.replay} no stage runs, so --stages would change nothing; leave one out.",
    )
    require(
        not values["stages"].present or bool(values.stages),
        f"--stages= names no stage; take some of {', '.join(STAGE_NAMES)}, or leave it out for all.",
    )
    for stage in values.stages:
        choose("--stages", stage, STAGE_NAMES)
    return values.stages or STAGE_NAMES
