"""launch.pod: the files that each launcher renders.

Oracles: YAML's and bash's own parsers, and the allowed fields of each format written down by hand.
"""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from launch.pods import gke, skypilot, slurm, xpk
from launch.pods.spec import SlurmConfig
from sdtt_jax.errors import ConfigError
from tests.launch.pod_specs import GPU, LAUNCHERS, SPECS, TPU, example, write

# The launchers that each spec is for; the others refuse it with a reason.
SUITABLE = {
    "v5e_256": ("tpu_vm", "gke", "xpk", "skypilot"),
    "v6e_64x4": ("tpu_vm", "gke", "xpk"),
    "h100_slurm": ("slurm",),
}


def check_fields(mapping, required, optional=()):
    assert set(required) <= set(mapping) <= {*required, *optional}, mapping


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_example_renders_for_its_launchers(name, launcher, tmp_path):
    module, spec = LAUNCHERS[launcher], example(name)
    if launcher not in SUITABLE[name]:
        with pytest.raises(ConfigError) as caught:
            module.render(spec)
        assert "\n" not in str(caught.value)
        return
    files = module.render(spec)
    assert any(spec.name in step for step in module.next_steps(spec, f"out/{spec.name}"))
    write(files, tmp_path)
    for file, text in files.items():
        assert "{{" not in text
        assert "{%" not in text
        assert not re.search(r"[ \t]$", text, re.M), file
        if file.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
        else:
            subprocess.run(["bash", "-n", str(tmp_path / file)], check=True)
            if shutil.which("shellcheck"):
                subprocess.run(
                    ["shellcheck", "--shell=bash", "--exclude=SC2154", str(tmp_path / file)],
                    check=True,
                )


@pytest.mark.parametrize("name", ["true", "no", "null", "e4"])
def test_a_name_is_a_text_whatever_yaml_makes_of_such_a_word(name):
    spec = dataclasses.replace(example("v5e_256"), name=name)
    jobset, task = gke.render(spec)["jobset.yaml"], skypilot.render(spec)["task.yaml"]
    assert yaml.safe_load(jobset)["metadata"]["name"] == yaml.safe_load(task)["name"] == name


@pytest.mark.parametrize("spec", [TPU, GPU, example("v6e_64x4"), example("v5e_256")])
def test_a_jobset_has_the_fields_of_its_schema(spec):
    jobset = yaml.safe_load(gke.render(spec)["jobset.yaml"])
    check_fields(jobset, ("apiVersion", "kind", "metadata", "spec"))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    check_fields(jobset["metadata"], ("name", "namespace"), ("labels", "annotations"))
    assert ("labels" in jobset["metadata"]) == bool(spec.gke.queue)
    check_fields(jobset["spec"], ("failurePolicy", "replicatedJobs"))
    policy = jobset["spec"]["failurePolicy"]
    check_fields(policy, ("maxRestarts", "rules"))
    for rule in policy["rules"]:
        check_fields(rule, ("name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns"))
    (group,) = jobset["spec"]["replicatedJobs"]
    check_fields(group, ("name", "replicas", "template"))
    job = group["template"]["spec"]
    check_fields(
        job,
        (
            "parallelism",
            "completions",
            "completionMode",
            "backoffLimit",
            "podFailurePolicy",
            "template",
        ),
    )
    assert job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * group["replicas"] == spec.hosts
    pod = job["template"]["spec"]
    check_fields(
        pod,
        (
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "hostNetwork",
            "dnsPolicy",
            "nodeSelector",
            "containers",
        ),
        ("serviceAccountName", "tolerations", "volumes"),
    )
    # Kubernetes allows a pod failure policy only with this.
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == spec.grace_seconds
    assert all(isinstance(value, str) for value in pod["nodeSelector"].values())
    (container,) = pod["containers"]
    check_fields(
        container, ("name", "image", "args", "ports", "resources"), ("env", "volumeMounts")
    )
    assert container["args"] == spec.command
    (chips,) = container["resources"]["limits"].values()
    assert chips * spec.hosts == spec.slice.chips * spec.slices
    for variable in container.get("env", ()):
        assert isinstance(variable.get("value", ""), str)


def test_a_jobset_maps_exit_statuses():
    """Messages are written as by the Job controller, and matched in order, as by the JobSet controller."""
    spec = yaml.safe_load(gke.render(TPU)["jobset.yaml"])["spec"]
    rules = spec["failurePolicy"]["rules"]
    pods = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]

    def action(status=None, disrupted=False):
        reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        for index, rule in enumerate(pods):
            assert rule["action"] == "FailJob"
            codes = rule.get("onExitCodes")
            if codes and codes["operator"] == "In" and status in codes["values"]:
                assert codes["containerName"] == "run"
                reason = "PodFailurePolicy"
                message = (
                    f"Container run for pod d/x failed with exit code {status} "
                    f"matching FailJob rule at index {index}"
                )
                break
            if disrupted and rule.get("onPodConditions") == [
                {"type": "DisruptionTarget", "status": "True"}
            ]:
                reason = "PodFailurePolicy"
                message = (
                    f"Pod d/x has condition DisruptionTarget matching FailJob rule at index {index}"
                )
                break
        for rule in rules:
            patterns = rule["onJobFailureMessagePatterns"]
            if reason in rule["onJobFailureReasons"] and any(
                re.search(p, message) for p in patterns
            ):
                return rule["action"]
        return "RestartJobSet"

    assert action(2) == "FailJobSet"
    assert action(75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(75, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    for other in (1, 22, 134, 137, 143):
        assert action(other) == "RestartJobSet"
    assert spec["failurePolicy"]["maxRestarts"] == TPU.max_restarts


@pytest.mark.parametrize(
    "spec", [dataclasses.replace(GPU, zone=""), TPU, example("v5e_256"), GPU], ids=str
)
def test_a_task_of_skypilot_has_the_fields_of_its_schema(spec):
    task = yaml.safe_load(skypilot.render(spec)["task.yaml"])
    check_fields(task, ("name", "workdir", "num_nodes", "resources", "setup", "run"))
    resources = task["resources"]
    check_fields(
        resources, ("accelerators", "use_spot", "job_recovery"), ("infra", "accelerator_args")
    )
    assert resources["job_recovery"] == {
        "recover_on_exit_codes": [75],
        "max_restarts_on_errors": 0,
    }
    assert resources["use_spot"] is False
    if spec.slice.chip.kind == "tpu":
        assert task["num_nodes"] == 1
        assert resources["accelerators"] == f"tpu-{spec.accelerator}"
        assert resources["infra"] == f"gcp/*/{spec.zone}"
    else:
        assert task["num_nodes"] == spec.slices
        assert resources["accelerators"] == "H100:8"
        assert ("infra" in resources) == bool(spec.zone)
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_a_task_may_be_set_up_again_on_the_same_machines(tmp_path):
    """`sky launch` does so. Oracle: uv, which ends with 2 where there is an environment, unless told."""
    (line,) = re.findall(
        r"^uv venv .*$", yaml.safe_load(skypilot.render(TPU)["task.yaml"])["setup"], re.M
    )
    command = shlex.split(line.replace("--seed ", "").replace("3.12", sys.executable))
    for _ in range(2):
        subprocess.run(
            [*command[:-1], str(tmp_path / "venv")], check=True, stdin=subprocess.DEVNULL
        )


def test_skypilot_says_where_the_project_is_set():
    """A task has no field for it, and config keys of a task neither (OVERRIDEABLE_CONFIG_KEYS_IN_TASK)."""
    spec = example("v5e_256")
    first, *others = skypilot.next_steps(spec, "out")
    assert first.startswith("gcloud config set project my-project ")
    assert skypilot.next_steps(dataclasses.replace(spec, project=""), "out") == others
    # The spec itself leaves it to gcloud; "my-project" used to be set there.
    assert SPECS["v5e_256"].get_config().project == ""


def test_a_batch_script_gives_each_task_all_gpus():
    script = slurm.render(example("h100_slurm"))["job.sbatch"]
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.M))
    assert options["nodes"] == "2"
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["signal"] == "TERM@120"
    assert "requeue" in options
    assert "gpus-per-task" not in script
    # srun does not take over the job's --cpus-per-task since Slurm 22.05 (its release notes).
    (step,) = re.findall(r"^srun .*$", script, re.M)
    assert options["cpus-per-task"] == "8"
    assert "--cpus-per-task=8" in step.split()
    # Directives after the first command would be ignored.
    assert script.rindex("#SBATCH") < script.index("\nset -euo")
    image = dataclasses.replace(
        example("h100_slurm"), image="docker://me@x.dev#p/x+y=z:cuda", slurm=SlurmConfig()
    )
    script = slurm.render(image)["job.sbatch"]
    # enroot: docker://[USER@][REGISTRY#]IMAGE[:TAG]. The quotes keep the `#` for bash, too.
    assert "'--container-image=docker://me@x.dev#p/x+y=z:cuda'" in script
    assert "--container-mounts=/shared/runs/sdtt-small:/shared/runs/sdtt-small" in script


def test_xpk_retries_what_we_retry():
    words = xpk.render(TPU)["workload.sh"]
    assert "--restart-on-exit-codes=1,75 " in words
    assert "--max-restarts=2 " in words
    assert "--tpu-type=v5litepod-8 " in words
