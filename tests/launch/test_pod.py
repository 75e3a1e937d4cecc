"""launch.pod: its command line, and the specs that it refuses, in one line that says what to change."""

import dataclasses
import math
import pathlib
import re
import shlex

import pytest

from launch.accelerators import ACCELERATORS
from launch.pods.spec import IN_IMAGES, GkeConfig, PodSpec, SlurmConfig, spec_dict
from sdtt_jax.config import from_mapping
from sdtt_jax.errors import ConfigError
from tests.forking import run_module
from tests.launch.pod_specs import LAUNCHERS, TPU

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "guides" / "pods"
# What the specs of launch/specs leave to the command line.
GIVEN = ["--spec.workdir=gs://bucket/run", "--spec.image=image:tag"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "My_Run"}, "name='My_Run' must be a DNS label"),
        ({"name": "a" * 41}, "at most 40"),
        ({"accelerator": "v5e-256"}, "did you mean v5litepod-256"),
        ({"accelerator": "v6e-100"}, "did you mean v6e-"),
        ({"accelerator": "abacus"}, "choose from"),
        ({"slices": 0}, "slices must be positive"),
        ({"workdir": ""}, "workdir is missing"),
        ({"workdir": "gs://"}, "must be gs://BUCKET/PATH"),
        ({"workdir": "gs://b/x"}, "a bucket whose name has 3 to 222 characters"),
        ({"workdir": "gs://b/a\nb"}, "one line"),
        ({"image": "a b"}, "image='a b' may contain only . _ @ : / # + = -"),
        ({"zone": "$(x)"}, "zone="),
        ({"overrides": ("seed=1",)}, "must be like --config.FIELD=VALUE"),
        ({"overrides": ("--workdir=/x",)}, "are fields of the spec"),
        ({"overrides": ("--distributed=off",)}, "all hosts join one job"),
        ({"grace_seconds": 5}, "grace_seconds=5 leaves no time"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"spot": True, "reservation": "r"}, "exclude each other"),
        ({"config": "owt"}, "must be a Python file"),
    ],
)
def test_a_wrong_field_is_named(change, fault):
    with pytest.raises(ConfigError, match=re.escape(fault)) as caught:
        dataclasses.replace(TPU, **change)
    assert "\n" not in str(caught.value)


def test_the_config_may_have_an_argument():
    """`owt_one_round.py:mmd` was no Python file. Oracle: the command in that config's docstring."""
    config = "experiments/configs/owt_one_round.py:mmd"
    assert f"--config={config}" in dataclasses.replace(TPU, config=config).command


@pytest.mark.parametrize(
    ("launcher", "change", "fault"),
    [
        ("slurm", {}, "slurm runs GPUs"),
        ("tpu_vm", {"accelerator": "h100"}, "tpu_vm runs TPUs"),
        ("xpk", {"accelerator": "h100"}, "xpk runs TPUs"),
        ("xpk", {"gke": GkeConfig()}, "set spec.gke.cluster"),
        ("tpu_vm", {"workdir": "/runs/x"}, "give gs://BUCKET/PATH"),
        ("gke", {"workdir": "runs/x"}, "give gs://BUCKET/PATH"),
        ("skypilot", {"workdir": "/runs/x"}, "give gs://BUCKET/PATH"),
        ("tpu_vm", {"zone": ""}, "set spec.zone"),
        ("gke", {"image": ""}, "set spec.image"),
        ("gke", {"slices": 2}, "choose a larger accelerator"),
        # JobSet takes the file, and then no pod can be made: Kubernetes has no such names.
        ("gke", {"service_account": "a@b.c"}, "no e-mail address"),
        ("skypilot", {"slices": 2}, "one TPU slice"),
        ("skypilot", {"reservation": "r"}, "config.yaml"),
        ("skypilot", {"service_account": "a@b.c"}, "gcp.remote_identity"),
        (
            "skypilot",
            {"grace_seconds": 600},
            "a task of SkyPilot has no field for it; leave it at 120",
        ),
        ("xpk", {"service_account": "a"}, "that of the node pools"),
        ("xpk", {"gke": GkeConfig(cluster="c", queue="q")}, "gke.queue='q'"),
        ("xpk", {"gke": GkeConfig(cluster="c", namespace="n")}, "gke.namespace='n'"),
        ("slurm", {"accelerator": "h100", "service_account": "a"}, "credentials"),
        ("slurm", {"accelerator": "h100", "image": ""}, "set spec.slurm.checkout"),
        ("slurm", {"accelerator": "h100", "workdir": "runs/x"}, "absolute path"),
        ("slurm", {"accelerator": "h100", "workdir": "/a,b"}, "neither ':' nor ','"),
        ("slurm", {"accelerator": "h100", "spot": True}, "set spec.slurm.partition"),
        # It was queued again for ever: 75 counts as no failure. --signal is in sbatch's manual.
        ("slurm", {"accelerator": "h100", "slurm": SlurmConfig(time_limit="00:02:00")}, "at once"),
    ],
)
def test_a_launcher_refuses_what_it_cannot_do(launcher, change, fault):
    with pytest.raises(ConfigError, match=re.escape(fault)) as caught:
        LAUNCHERS[launcher].render(dataclasses.replace(TPU, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", ["/data/own.py", "own.py", "experiments/../own.py:a", "~/own.py"]
)
def test_a_config_that_hosts_will_not_have_is_refused(config):
    """Each host ended with status 2, once there was a slice. Oracle: what the Dockerfiles copy."""
    docker = "\n".join(path.read_text() for path in (ROOT / "launch" / "docker").iterdir())
    assert set(re.findall(r"^COPY (\w+) \1$", docker, re.MULTILINE)) == {*IN_IMAGES}
    for launcher in LAUNCHERS:
        spec = dataclasses.replace(TPU, accelerator="h100" if launcher == "slurm" else "v6e-16")
        if launcher == "skypilot":  # it sends the whole checkout
            LAUNCHERS[launcher].render(dataclasses.replace(spec, config="own.py"))
        if (launcher, config) != ("skypilot", "own.py"):
            with pytest.raises(ConfigError, match="the hosts do not have this file"):
                LAUNCHERS[launcher].render(dataclasses.replace(spec, config=config))


def test_slurm_fields_are_checked():
    for change in ({"time_limit": "a day"}, {"partition": "a b"}, {"cpus_per_task": 0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            SlurmConfig(**change)


def test_the_table_of_accelerators_adds_up():
    assert ACCELERATORS["v5litepod-256"].hosts == 64
    assert ACCELERATORS["v5p-512"].chips == 256
    assert ACCELERATORS["v5litepod-8"].machine == "ct5lp-hightpu-8t"
    for accelerator in ACCELERATORS.values():
        assert accelerator.hosts * accelerator.chips_per_host == accelerator.chips
        if accelerator.chip.kind == "tpu":
            assert math.prod(map(int, accelerator.topology.split("x"))) == accelerator.chips
        assert (accelerator.topology != "") == (accelerator.chip.kind == "tpu")
    assert from_mapping(PodSpec, spec_dict(TPU).to_dict()) == TPU


def command_line(*arguments):
    return run_module("launch.pod", arguments)


def test_dry_run_prints_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    result = command_line(
        "--launcher=gke",
        "--spec=launch/specs/v5e_256.py",
        *GIVEN,
        "--spec.slices=2",
        "--dry_run",
        f"--output={out}",
        "--",
        "--config.seed=3",
        "--config.mesh.model=4",
    )
    assert result.status == 0, result.stderr
    assert f"==> {out}/jobset.yaml <==" in result.stdout
    assert "replicas: 2" in result.stdout
    assert '"--config.seed=3"' in result.stdout
    assert "kubectl apply -f" in result.stdout
    assert not out.exists()


def test_files_are_written_and_the_next_commands_printed(tmp_path):
    out = tmp_path / "a folder"
    given = ["--launcher=tpu_vm", "--spec=launch/specs/v5e_256.py", *GIVEN]
    result = command_line(*given, f"--output={out}")
    assert result.status == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["host.sh", "pod.sh"]
    assert f"bash '{out}/pod.sh' run" in result.stdout
    # A shell that was in the middle of pod.sh read on in the new text, and ended with status 2. Oracle: the
    # open file's text stays.
    with (out / "pod.sh").open() as running:
        assert command_line(*given, f"--output={out}", "--spec.project=mine-2").status == 0
        assert "mine-2" not in running.read()
    assert "mine-2" in (out / "pod.sh").read_text()


WRONG = (
    (["--launcher=slurm"], "slurm runs GPUs"),
    (["--launcher=gke", "--spec.acelerator=x"], "did you mean 'accelerator'"),
    (["--launcher=gke", "--spec.workdir=/runs/x"], "give gs://BUCKET/PATH"),
    (["--launcher=gke", "--", "--config.distill.train.steps=3"], "has no field 'steps'"),
    (["--launcher=gke", "--", "--stages=distil,evluate"], "did you mean 'distill'"),
    (["--launcher=gke", "--spec.slices=2"], "On v5litepod-256 × 2: distill.train.batch_size=128"),
    # The specs had "my-bucket" and the like, which went into the files.
    (["--launcher=gke", "--spec.workdir=gs://my-bucket/sdtt/small"], "is the example's; give"),
    (["--launcher=gke", "--spec.image="], "image is missing; set spec.image"),
    (["--launcher=tpu_vm", "--nodry_run", "--output=LICENSE"], "is a file; name a folder"),
    (["--launcher=gke", "--spec=/v5e_255.py"], "did you mean 'launch/specs/v5e_256.py'"),
    (["--launcher=gke", "--spec=/nope.py"], "launch/specs holds some"),
    (["--launcher=cron"], "<tpu_vm|gke|xpk|skypilot|slurm>"),
    (["--launcher=gke", "--config.seed=1"], "options of the run follow `--`"),
    ([], "--launcher is missing"),
)


def test_a_wrong_command_line_is_one_line_and_status_2():
    always = ["--spec=launch/specs/v5e_256.py", "--dry_run"]
    for arguments, fault in WRONG:
        result = command_line(*always, *GIVEN, *arguments)
        assert result.status == 2, result
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert fault in line


def commands_of_the_documents():
    """Those in blocks; and the first of each page with the options that its running text names."""
    pages = sorted(PAGES.glob("*.md"))
    assert len(pages) > 4, PAGES
    for page in pages:
        text = page.read_text()
        blocks = re.findall(r"(?ms)^```\n(.*?)^```", text.replace("\\\n", " "))
        lines = [line for block in blocks for line in block.splitlines()]
        lines = [line for line in lines if line.startswith("python -m launch.pod")]
        yield from lines
        for options in re.findall(
            r"`(--spec\.[^`\n]+=[^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text)
        ):
            if "FIELD" not in options:
                before, *_ = lines[0].split(" -- ")
                yield f"{before} {options}"


def test_the_documents_have_commands_that_work():
    lines = [
        re.sub(r"\[.*?\]", "", line).replace("BUCKET", "bucket").replace("IMAGE", "image:tag")
        for line in commands_of_the_documents()
    ]
    assert sum("--spec.slices=2 -- --config.mesh.model=4" in line for line in lines) == 2
    assert len(lines) > 12
    for line in lines:
        result = command_line("--dry_run", *shlex.split(line)[3:])
        assert result.status == 0, (line, result.stderr)


def test_the_documents_link_to_files_that_exist():
    for page in PAGES.glob("*.md"):
        for link in re.findall(r"\]\((?!https://)([^)#]*)(?:#[^)]*)?\)", page.read_text()):
            assert link == "" or (page.parent / link).is_file(), f"{page.name}: {link}"
