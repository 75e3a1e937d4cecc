"""The options of a pod's run, checked as the run itself will read them."""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments.cli.app import IN_FLAGS, clearer
from experiments.settings import check_overrides, run_config
from sdtt_jax.errors import ConfigError


def check_run(options: Sequence[str]) -> None:
    """Raises `ConfigError` for a config field, or a value of one, that the run would refuse."""
    check_overrides(options)
    values, argv = flags.FlagValues(), ["experiments.run", *options]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv, known_only=True)
    except IN_FLAGS as error:
        raise ConfigError(f"The run's options: {clearer(str(error))}") from None
    run_config(values.config)
