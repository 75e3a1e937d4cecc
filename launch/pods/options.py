"""The options of a pod's run, checked as the run itself will read them."""

from collections.abc import Sequence

from absl import flags

from experiments.cli import app
from experiments.cli.arguments import IN_FLAGS, in_words
from experiments.settings import check_overrides, run_config
from launch.accelerators import Accelerator
from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import abstract_mesh


def check_run(options: Sequence[str], slice_: Accelerator, slices: int) -> None:
    """Raises `ConfigError` for options of `experiments.run` that it would refuse on so many slices or nodes.

    That is an option, a config field or a value of one that it does not have, and a mesh, batch size or
    network that the chips cannot split. What lies elsewhere (data, models, what is finished) is not looked
    for.
    """
    # The stages take 0.8 s.
    from experiments.cli.run_flags import chosen_stages, define_flags
    from experiments.stages.devices import check_devices

    check_overrides(options)
    values, argv = flags.FlagValues(), ["experiments.run", *options]
    define_flags(values, argv)
    _define_common(values)
    try:
        beside = values(argv)[1:]
    except IN_FLAGS as error:
        raise ConfigError(f"The run's options: {in_words(error)}") from None
    require(not beside, f"The run's options: unknown argument {' '.join(beside)!r}.")
    stages = chosen_stages(values)
    config = run_config(values.config)
    try:
        # JAX counts each node of GPUs as a slice too (`BuildGlobalTopology` of XLA: one for each boot id).
        mesh = abstract_mesh(config.mesh, slices * slice_.chips, slices)
        check_devices(config, stages if values.replay is None else (), mesh)
    except ConfigError as error:
        several = f" × {slices}" if slices > 1 else ""
        raise ConfigError(f"On {slice_.name}{several}: {error}") from None


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
