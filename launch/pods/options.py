"""The options of a pod's run, checked as the run itself will read them."""

from collections.abc import Sequence

from absl import flags

from experiments.cli import app
from experiments.cli.arguments import IN_FLAGS, in_words
from experiments.settings import check_overrides, run_config
from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError


def check_run(options: Sequence[str]) -> None:
    """Raises `ConfigError` for an option, a config field, or a value of one, that the run would refuse."""
    from experiments.cli.run_flags import chosen_stages, define_flags  # the stages take 0.8 s

    check_overrides(options)
    values, argv = flags.FlagValues(), ["experiments.run", *options]
    define_flags(values, argv)
    _define_common(values)
    try:
        beside = values(argv)[1:]
    except IN_FLAGS as error:
        raise ConfigError(f"The run's options: {in_words(error)}") from None
    require(not beside, f"The run's options: unknown argument {' '.join(beside)!r}.")
    chosen_stages(values)
    run_config(values.config)


def _define_common(values: flags.FlagValues) -> None:
    """Defines in `values` the flags of all entry points: those of `app`, and absl's own but for its help."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module != app.__name__ and not module.startswith("absl."):
            continue
        for flag in defined:
            if not flag.name.startswith("help") and flag.name not in values:
                # Not the flag itself: setting absl's --verbosity would set this program's.
                plain = flags.Flag(
                    flag.parser,
                    flag.serializer,
                    flag.name,
                    None,
                    flag.help,
                    short_name=flag.short_name,
                    boolean=flag.boolean,
                )
                flags.DEFINE_flag(plain, values)
