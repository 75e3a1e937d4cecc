"""The spec of a run on a pod: every field with its default, and the templates that it fills."""

import dataclasses
import json
import re
import shlex
from pathlib import Path, PurePosixPath

import jinja2
import ml_collections

from launch.accelerators import Accelerator, find
from sdtt_jax.config import require, to_mapping, whole

_DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_WORD = re.compile(r"[\w.@:/-]*")
# '#' ends the registry in enroot's form; paths of .sqsh files may hold the others.
_IMAGE = re.compile(r"[\w.@:/#+=-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
# The folders of the checkout that the images of launch/docker hold.
IN_IMAGES = ("sdtt_jax", "experiments", "launch")

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
_ENVIRONMENT.filters["sh"] = lambda value: shlex.quote(str(value))
# Every JSON string is a YAML string, whatever it holds.
_ENVIRONMENT.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)

Files = dict[str, str]


def _check_words(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(
            _WORD.fullmatch(value) is not None,
            f"{name}={value!r} may contain only . _ @ : / -, letters and digits.",
        )


def _check_line(name: str, value: str) -> None:
    require(
        _CONTROL.search(value) is None,
        f"{name}={value!r} must be one line without control characters.",
    )


@dataclasses.dataclass(frozen=True)
class GkeConfig:
    """What GKE and xpk need to know."""

    cluster: str = ""  # name of the cluster; xpk only
    namespace: str = "default"  # where the JobSet goes
    queue: str = ""  # Kueue's LocalQueue; empty without Kueue; xpk has its own

    def __post_init__(self) -> None:
        _check_words(self, "cluster", "namespace", "queue")
        require(self.namespace != "", "namespace is empty; the usual one is 'default'.")


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """What SLURM needs to know."""

    partition: str = ""  # empty for the cluster's default
    account: str = ""  # empty for the user's default
    # Days-hours:minutes:seconds or hours:minutes:seconds of one attempt.
    time_limit: str = "24:00:00"
    cpus_per_task: int = 8  # CPU cores for each GPU
    checkout: str = ""  # directory of this repository, seen by all nodes; unused with an image
    python: str = ""  # Python with the library installed, seen by all nodes; unused with an image

    def __post_init__(self) -> None:
        _check_words(self, "partition", "account")
        require(
            re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", self.time_limit) is not None,
            f"time_limit={self.time_limit!r} must be like 24:00:00 or 2-00:00:00.",
        )
        whole(1, self, "cpus_per_task")
        for name in ("checkout", "python"):
            _check_line(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class PodSpec:
    """A run on a pod."""

    name: str = "sdtt"  # name of the job and of everything made for it
    accelerator: str = "v5litepod-128"  # one slice or node: v5litepod-256, v6e-256, v5p-512, h100 …
    slices: int = 1  # TPU slices, connected by the data-centre network, or GPU nodes
    # Config file of `experiments.run`, as a path in this repository, with `:ARGUMENT` if it takes one.
    config: str = "experiments/configs/owt_small.py"
    # Directory of the run, seen by all hosts: gs://BUCKET/PATH, or with SLURM also a path.
    workdir: str = ""
    # Further options of `experiments.run`: --config.FIELD=VALUE, --stages=a,b.
    overrides: tuple[str, ...] = ()
    # One spec serves several launchers, so that these may be set where a launcher has no need of them: the
    # image with SkyPilot, project and zone with GKE and SLURM.
    image: str = ""  # container image (launch/docker/)
    project: str = ""  # Google Cloud project; empty for gcloud's default
    zone: str = ""  # Google Cloud zone
    spot: bool = False  # use capacity that can be taken away at any time
    reservation: str = ""  # name of a reservation
    service_account: str = ""  # that of the TPU VMs (e-mail address), or of Kubernetes (name)
    # After how many failures there is another attempt; status 75 is not a failure (but xpk counts it).
    max_restarts: int = 3
    grace_seconds: int = 120  # time to save between SIGTERM and SIGKILL
    gke: GkeConfig = GkeConfig()  # for GKE and xpk
    slurm: SlurmConfig = SlurmConfig()  # for SLURM

    def __post_init__(self) -> None:
        require(
            _DNS_LABEL.fullmatch(self.name) is not None,
            f"name={self.name!r} must be a DNS label: at most 40 of a-z, 0-9 and '-', beginning with a "
            "letter and not ending with '-'.",
        )
        find(self.accelerator)
        whole(1, self, "slices")
        whole(0, self, "max_restarts", "grace_seconds")
        require(
            self.grace_seconds >= 30,
            f"grace_seconds={self.grace_seconds} leaves no time to save; give at least 30.",
        )
        _check_words(self, "project", "zone", "reservation", "service_account")
        require(
            _IMAGE.fullmatch(self.image) is not None,
            f"image={self.image!r} may contain only . _ @ : / # + = -, letters and digits.",
        )
        for name in ("config", "workdir"):
            _check_line(name, getattr(self, name))
        file, _, _ = self.config.partition(":")
        require(file.endswith(".py"), f"config={self.config!r} must be a Python file.")
        require(self.workdir != "", "workdir is missing; give gs://BUCKET/PATH.")
        require(
            not self.workdir.startswith("gs:") or _BUCKET.fullmatch(self.workdir) is not None,
            f"workdir={self.workdir!r} must be gs://BUCKET/PATH, with a bucket whose name has 3 to 222 "
            "characters (a-z, 0-9, '.', '_', '-') and begins and ends with a letter or digit.",
        )
        require(
            not (self.spot and self.reservation),
            "spot and reservation exclude each other; leave one of them out.",
        )
        for override in self.overrides:
            _check_line("overrides", override)
            require(
                override.startswith("--")
                and not override.startswith(
                    ("--config=", "--workdir", "--flagfile", "--distributed")
                ),
                f"overrides: {override!r} must be like --config.FIELD=VALUE or --stages=a,b; config and "
                "workdir are fields of the spec, and all hosts join one job.",
            )

    @property
    def slice(self) -> Accelerator:
        """The accelerator's row of the table."""
        return find(self.accelerator)

    @property
    def hosts(self) -> int:
        """Hosts of all slices or nodes."""
        return self.slices * self.slice.hosts

    @property
    def command(self) -> list[str]:
        """What every process runs, at the first start and at every restart."""
        return [
            "python",
            "-m",
            "experiments.run",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *self.overrides,
        ]

    @property
    def shell_command(self) -> str:
        """`command` as one line of shell."""
        return shlex.join(self.command)


def spec_dict(spec: PodSpec) -> ml_collections.ConfigDict:
    """The spec as spec files return it: locked, so that an unknown field is an error."""
    # A tuple, not a list as in JSON, because only tuples can be given on the command line.
    return ml_collections.ConfigDict(to_mapping(spec) | {"overrides": spec.overrides}).lock()


def for_kubernetes(text: str) -> str:
    """A part of a command as Kubernetes has it, which replaces `$(NAME)` by a variable, and `$$` by `$`."""
    return text.replace("$", "$$")


def refuse_fields(spec: PodSpec, **reasons: str) -> None:
    """Raises `ConfigError` for a field that a launcher cannot honour, unless it has its default."""
    for name, reason in reasons.items():
        require(getattr(spec, name) == getattr(PodSpec, name), f"{name}: {reason}")


def require_tpu(spec: PodSpec, launcher: str) -> None:
    """Raises `ConfigError` for GPUs."""
    require(
        spec.slice.chip.kind == "tpu",
        f"accelerator={spec.accelerator!r}: {launcher} runs TPUs; use gke, skypilot or slurm for GPUs.",
    )


def require_sent(spec: PodSpec, *, image: bool) -> None:
    """Raises `ConfigError` unless the config file is one that the image holds, or the checkout."""
    first, *others = PurePosixPath(spec.config.partition(":")[0]).parts
    inside = first in IN_IMAGES if image else first not in ("/", "~", "..")
    what = (
        f"an image, which has {', '.join(IN_IMAGES)} of the checkout" if image else "the checkout"
    )
    require(
        inside and ".." not in others,
        f"config={spec.config!r}: the hosts do not have this file, because it is no path in {what}; put it "
        "there, such as experiments/configs/FILE.py.",
    )


def require_cloud(spec: PodSpec, *fields: str) -> None:
    """Raises `ConfigError` unless the hosts see workdir and config file, and each of `fields` is set."""
    require(
        spec.workdir.startswith("gs://"),
        f"workdir={spec.workdir!r} is not visible to all hosts; give gs://BUCKET/PATH.",
    )
    for name in fields:
        value: object = spec
        for part in name.split("."):
            value = getattr(value, part)
        require(value != "", f"{name} is missing; set spec.{name}.")
    require_sent(spec, image="image" in fields)


def template(name: str, spec: object, **values: object) -> str:
    """A template of `templates/`, filled in. It quotes what may need it by `sh` or `json`.

    It may use the spec's fields and `values`, which come before fields of the same name.
    """
    return _ENVIRONMENT.get_template(name).render(vars(spec) | values)
