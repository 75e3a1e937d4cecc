"""launch.pod: what the rendered scripts do with exit statuses, and that no value breaks out of its place.

The scripts really run, with stubs of the tools that they call (pod_stubs.py).
"""

import dataclasses
import re

import pytest
import yaml

from launch.pods import gke, skypilot, slurm, tpu_vm, xpk
from launch.pods.spec import SlurmConfig
from tests.launch.pod_specs import GPU, TPU, write
from tests.launch.pod_stubs import make_stubs

NASTY = "gs://bucket/a b'c\"d\\ $(touch PWNED) `touch PWNED`; $$$(x) true & ${HOME} %s {{x}} # é \U0001f600"

# The workload's statuses, in turn; how often it is run; the status in the end. Two restarts are allowed.
OUTCOMES = [
    ([0], 1, 0),
    ([75, 75, 75, 75, 0], 5, 0),
    ([2], 1, 2),
    ([75, 2], 2, 2),
    ([1, 75, 137, 0], 4, 0),
    ([1, 1, 1], 3, 1),
    ([1, 75, 1, 134], 4, 1),
]


@pytest.fixture
def stubs(tmp_path):
    return make_stubs(tmp_path)


@pytest.mark.parametrize(("codes", "runs", "outcome"), OUTCOMES, ids=str)
def test_tpu_vm_repeats_what_can_be_repeated(stubs, tmp_path, codes, runs, outcome):
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    result = stubs.run(pod / "pod.sh", "run", codes=codes)
    assert result.returncode == outcome, result.stderr
    assert stubs.runs == runs
    assert len([call for call in stubs.lines("gcloud") if " create " in call]) == 1


def test_tpu_vm_asks_again_for_a_slice_that_was_taken_away(stubs, tmp_path):
    pod = write(
        tpu_vm.render(dataclasses.replace(TPU, max_restarts=0, spot=True)), tmp_path / "pod"
    )
    (tmp_path / "preempt").touch()
    result = stubs.run(pod / "pod.sh", "run", codes=[0])
    assert result.returncode == 0, result.stderr
    calls = stubs.lines("gcloud")
    created = [call for call in calls if " create " in call]
    assert len(created) == 2
    assert "--spot" in created[0]
    assert len([call for call in calls if " delete " in call]) == 1


@pytest.mark.parametrize(
    ("state", "outcome", "said"),
    [("SUSPENDING", 0, "taken away"), ("ACTIVE", 1, "failed 1 times; giving up")],
)
def test_tpu_vm_counts_a_pull_that_fails_unless_the_slice_was_taken_away(
    stubs, tmp_path, state, outcome, said
):
    pod = write(tpu_vm.render(dataclasses.replace(TPU, max_restarts=0)), tmp_path / "pod")
    (tmp_path / "install").write_text(f'echo {state} >"$STUB/state"; echo denied >&2; exit 1\n')
    result = stubs.run(pod / "pod.sh", "run", codes=[0])
    assert result.returncode == outcome, result.stdout
    assert said in result.stdout
    assert "denied" in result.stderr
    if outcome:  # the log that the message names
        assert "denied" in (pod / "run.log").read_text()
    else:
        assert "failed" not in result.stdout


def test_tpu_vm_run_ends_when_the_slice_is_deleted_beside_it(stubs, tmp_path):
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    (tmp_path / "install").write_text(f"bash '{pod}/pod.sh' delete; exit 1\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[0])
    assert result.returncode == 1
    assert "[pod] the slice was deleted: ending" in result.stdout
    assert "taken away" not in result.stdout
    assert not (tmp_path / "state").exists()
    # A new `run` asks for another slice.
    assert stubs.run(pod / "pod.sh", "run", codes=[0]).returncode == 0
    assert len([call for call in stubs.lines("gcloud") if " create " in call]) == 2


def test_tpu_vm_attaches_to_a_run_that_goes_on(stubs, tmp_path):
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    (tmp_path / "state").write_text("ACTIVE\n")
    (tmp_path / "running").touch()
    (tmp_path / "exit").write_text("75\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[0])
    assert result.returncode == 0, result.stderr
    assert stubs.runs == 1  # after the run that it found, which ended with 75


def test_tpu_vm_attaches_again_whenever_the_connection_is_cut(stubs, tmp_path):
    """However often: a cut says nothing about the run, and only failures of the run are counted."""
    pod = write(tpu_vm.render(dataclasses.replace(TPU, max_restarts=0)), tmp_path / "pod")
    (tmp_path / "cuts").write_text("cut\n" * 3)
    (tmp_path / "running").touch()
    (tmp_path / "exit").write_text("0\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[])
    assert result.returncode == 0, result.stderr
    assert stubs.runs == 0
    assert result.stdout.count("connection was cut") == 3
    assert "failed" not in result.stdout


def test_tpu_vm_ends_when_its_requests_fail_again_and_again(stubs, tmp_path):
    """As they do for want of quota, which gcloud refuses only when the request's turn comes."""
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    result = stubs.run(pod / "pod.sh", "run", codes=[0], CREATED="FAILED")
    assert result.returncode == 1
    assert "failed 5 times in a row" in result.stdout
    assert len([call for call in stubs.lines("gcloud") if " create " in call]) == 5


def test_tpu_vm_counts_a_container_that_does_not_start(stubs, tmp_path):
    pod = write(tpu_vm.render(dataclasses.replace(TPU, max_restarts=1)), tmp_path / "pod")
    (tmp_path / "no-docker").touch()
    result = stubs.run(pod / "pod.sh", "run", codes=[])
    assert result.returncode == 1
    assert "[pod] failed 2 times; giving up" in result.stdout


@pytest.mark.parametrize("calls", [1, 2, 9])
def test_tpu_vm_waits_while_this_machine_is_offline_and_attaches_again(stubs, tmp_path, calls):
    """So many calls of gcloud fail after the connection was cut; none counts, and the slice is kept."""
    pod = write(tpu_vm.render(dataclasses.replace(TPU, max_restarts=0)), tmp_path / "pod")
    (tmp_path / "state").write_text("ACTIVE\n")
    (tmp_path / "cut").write_text("offline\n" * calls)
    (tmp_path / "running").touch()
    (tmp_path / "exit").write_text("0\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[])
    assert result.returncode == 0, result.stdout + result.stderr
    assert stubs.runs == 0
    verbs = {call.split()[3] for call in stubs.lines("gcloud")}
    assert verbs == {"describe", "ssh"}


@pytest.mark.parametrize(
    ("state", "refusals", "verbs", "outcome"),
    [
        (None, ["create"] * 2, ["create"] * 3, 0),
        ("SUSPENDED", ["delete", "create"], ["delete"] * 2 + ["create"] * 2, 0),
        (None, ["create"] * 9, ["create"] * 5, 1),
        ("FAILED", ["delete"] * 9, ["delete"] * 5, 1),
    ],
    ids=["create", "both", "create-for-good", "delete-for-good"],
)
def test_tpu_vm_asks_again_when_gcloud_refuses(stubs, tmp_path, state, refusals, verbs, outcome):
    """503 may pass by the next call; five refusals in a row are an error that a person has to look at."""
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    (tmp_path / "refusals").write_text("".join(f"{verb}\n" for verb in refusals))
    if state:
        (tmp_path / "state").write_text(f"{state}\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[0])
    assert result.returncode == outcome, result.stderr
    calls = [call.split()[3] for call in stubs.lines("gcloud")]
    assert [verb for verb in calls if verb in ("create", "delete")] == verbs
    said = [line for line in result.stdout.splitlines() if "[pod] gcloud refused to" in line]
    assert len(said) == min(len(refusals), 5)
    assert ("5 times in a row" in said[-1]) == (outcome == 1)


def test_tpu_vm_asks_for_nothing_while_it_cannot_see_what_is_there(stubs, tmp_path):
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    (tmp_path / "offline").write_text("offline\n")
    result = stubs.run(pod / "pod.sh", "run", codes=[])
    assert result.returncode == 1
    assert "Failed to establish a new connection" in result.stderr
    assert "cannot be asked for" in result.stdout
    assert [call.split()[3] for call in stubs.lines("gcloud")] == ["describe"]


def test_tpu_vm_takes_a_host_that_is_silent_for_a_failure(stubs, tmp_path):
    """Two hosts are expected, and the stub answers for one."""
    pod = write(tpu_vm.render(dataclasses.replace(TPU, slices=2, max_restarts=0)), tmp_path / "pod")
    assert stubs.run(pod / "pod.sh", "run", codes=[0]).returncode == 1
    create = next(call for call in stubs.lines("gcloud") if " create " in call)
    assert "--node-count=2 --node-prefix=run" in create


def test_tpu_vm_explains_itself(stubs, tmp_path):
    pod = write(tpu_vm.render(TPU), tmp_path / "pod")
    result = stubs.run(pod / "pod.sh", codes=[])
    assert result.returncode == 2
    assert result.stderr.startswith("bash pod.sh run ")
    assert "delete" in result.stderr


@pytest.mark.parametrize(("codes", "runs", "outcome"), OUTCOMES, ids=str)
def test_slurm_requeues_what_can_be_repeated(stubs, tmp_path, codes, runs, outcome):
    spec = dataclasses.replace(
        GPU, image="", slurm=SlurmConfig(checkout=str(tmp_path), python=stubs.python)
    )
    job = write(slurm.render(spec), tmp_path / "pod") / "job.sbatch"
    environment = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path / "cwd")}
    for _ in range(10):
        before = len(stubs.lines("scontrol"))
        result = stubs.run(job, codes=codes, **environment)
        if len(stubs.lines("scontrol")) == before:
            break
    assert result.returncode == outcome, result.stderr
    assert stubs.runs == runs
    assert stubs.lines("scontrol") == ["requeue 7"] * (runs - 1)


@pytest.mark.parametrize("code", [75, 134])
def test_slurm_that_does_not_requeue_ends_with_the_status_of_the_tasks(stubs, tmp_path, code):
    spec = dataclasses.replace(
        GPU, image="", slurm=SlurmConfig(checkout=str(tmp_path), python=stubs.python)
    )
    job = write(slurm.render(spec), tmp_path / "pod") / "job.sbatch"
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    environment = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path / "cwd")}
    result = stubs.run(job, codes=[code], **environment)
    assert result.returncode == code
    assert "submit the same file" in result.stdout


@pytest.mark.parametrize(
    ("codes", "runs", "outcome"),
    [([0], 1, 0), ([75], 1, 75), ([2], 1, 2), ([1, 2], 2, 2), ([1, 134, 1], 3, 1), ([1, 0], 2, 0)],
    ids=str,
)
def test_skypilot_leaves_75_to_skypilot_and_repeats_the_rest(stubs, tmp_path, codes, runs, outcome):
    task = yaml.safe_load(skypilot.render(TPU)["task.yaml"])
    (tmp_path / "run.sh").write_text(task["run"])
    result = stubs.run(tmp_path / "run.sh", codes=codes)
    assert result.returncode == outcome, result.stderr
    assert stubs.runs == runs


def as_kubernetes_reads(text):
    """`$$` is `$`, and `$(NAME)` a variable (third_party/forked/golang/expansion/expand.go)."""
    return re.sub(r"\$(\$|\(.*?\))", lambda found: found[1] if found[1] == "$" else "VALUE", text)


def test_no_value_breaks_out_of_its_place(stubs, tmp_path):
    override = NASTY.replace("gs://bucket/", "--config.data.corpus=")
    spec = dataclasses.replace(TPU, workdir=NASTY, overrides=(override,))
    expected = spec.command[1:]

    def received():
        assert not list(tmp_path.rglob("PWNED"))
        arguments = stubs.lines("argv")
        (tmp_path / "argv").unlink()
        return arguments

    pod = write(tpu_vm.render(spec), tmp_path / "tpu")
    assert stubs.run(pod / "pod.sh", "run", codes=[0]).returncode == 0
    assert received() == expected

    workload = write(xpk.render(spec), tmp_path / "xpk") / "workload.sh"
    stubs.run(workload, codes=[0, 0])
    assert received() == expected

    task = yaml.safe_load(skypilot.render(spec)["task.yaml"])
    (tmp_path / "run.sh").write_text(task["run"])
    stubs.run(tmp_path / "run.sh", codes=[0, 0, 0])
    assert received() == expected

    checkout = tmp_path / "a checkout; $(touch PWNED) 'x'"
    checkout.mkdir()
    gpu = dataclasses.replace(
        spec,
        accelerator="h100",
        image="",
        slurm=SlurmConfig(checkout=str(checkout), python=stubs.python),
    )
    job = write(slurm.render(gpu), tmp_path / "slurm") / "job.sbatch"
    stubs.run(job, codes=[0, 0, 0, 0], SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(tmp_path / "cwd"))
    assert received() == expected

    jobset = yaml.safe_load(gke.render(spec)["jobset.yaml"])
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    arguments = template["spec"]["containers"][0]["args"]
    assert [as_kubernetes_reads(argument) for argument in arguments] == spec.command
