"""Writes the files that start a run on a pod, and prints the commands to run next.

  python -m launch.pod --launcher=gke --spec=launch/specs/v5e_256.py \\
    --spec.workdir=gs://BUCKET/PATH --spec.image=IMAGE

Launchers: tpu_vm (gcloud, queued resources), gke (JobSet), xpk, skypilot, slurm. Any field of the
spec can be given on the command line, for example --spec.spot=true or --spec.gke.queue=QUEUE; what
follows `--` is added to the options of experiments.run, for example
-- --config.seed=1 --stages=distill,evaluate. Nothing is started: the files are written to --output,
or with --dry_run only printed. There is a page for each launcher in docs/guides/pods.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli.app import run_app
from experiments.cli.overrides import check_fields, define_config_file
from launch.pods import gke, skypilot, slurm, tpu_vm, xpk
from launch.pods.options import check_run
from launch.pods.spec import Files, PodSpec
from sdtt_jax.config import from_mapping, require
from sdtt_jax.errors import UserError
from sdtt_jax.paths import as_path, write_text

# Each has `render`, which returns the files, and `next_steps`, the commands to run then.
LAUNCHERS = {"tpu_vm": tpu_vm, "gke": gke, "xpk": xpk, "skypilot": skypilot, "slurm": slurm}

EXAMPLE = "gs://my-bucket"
"""The bucket of the specs in launch/specs, which is nobody's."""

_LAUNCHER = flags.DEFINE_enum("launcher", None, list(LAUNCHERS), "The tool that starts the run.")
_SPEC = define_config_file("spec", "The spec file.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the files instead of writing them.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory to write the files to; runs/pods/NAME/LAUNCHER by default."
)


def pod_spec(spec: Any, overrides: Sequence[str] = ()) -> PodSpec:
    """Validates a spec from file and command line; errors name its field, or the field of the run's config.

    `overrides` are added to the spec's own.
    """
    mapping = spec.to_dict()
    mapping["overrides"] = (*mapping["overrides"], *overrides)
    validated = from_mapping(PodSpec, mapping, where="spec")
    require(
        not validated.workdir.startswith(f"{EXAMPLE}/"),
        f"workdir={validated.workdir!r} is the example's; give --spec.workdir=gs://BUCKET/PATH.",
    )
    options = [f"--config={validated.config}", *validated.overrides]
    check_run(options, validated.slice, validated.slices)
    return validated


def write(files: Files, directory: Path) -> None:
    """Writes the files, each as a new one: a shell reads on in a `pod.sh` that it is running."""
    require(not directory.is_file(), f"--output={directory} is a file; name a folder.")
    try:
        for name, text in files.items():
            write_text(directory / name, text)
    except OSError as error:
        raise UserError(f"--output={directory}: {error.strerror}.") from None


def main(argv: Sequence[str]) -> None:
    """Writes or prints what the flags ask for."""
    for name in ("launcher", "spec"):
        require(flags.FLAGS[name].value is not None, f"--{name} is missing; see --help.")
    launcher = str(_LAUNCHER.value)
    spec = pod_spec(_SPEC.value, argv[1:])
    files: Files = LAUNCHERS[launcher].render(spec)
    directory = str(as_path(_OUTPUT.value or f"runs/pods/{spec.name}/{launcher}"))
    if _DRY_RUN.value:
        for name, text in files.items():
            print(f"==> {directory}/{name} <==\n{text}")
    else:
        write(files, as_path(directory))
        print(f"Written: {', '.join(f'{directory}/{name}' for name in files)}")
    print("Next:")
    for step in LAUNCHERS[launcher].next_steps(spec, directory):
        print(f"  {step}")


if __name__ == "__main__":
    run_app(main, functools.partial(check_fields, flag="spec", kind=PodSpec))
