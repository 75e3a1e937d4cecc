"""The run's options as launch.pod reads them. Oracle: the message, which is the run's own; arithmetic."""

import importlib
import re

import pytest

from launch.accelerators import find
from launch.pods.options import check_run
from launch.pods.spec import PodSpec
from sdtt_jax.config import from_mapping
from sdtt_jax.errors import ConfigError
from tests.forking import ROOT

CONFIG = f"--config={ROOT / 'experiments' / 'configs' / 'owt_small.py'}"
SPECS = ROOT / "launch" / "specs"
# A warning from ml_collections' own reading of a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def check(options, accelerator="v5litepod-128", slices=1):
    check_run(options, find(accelerator), slices)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--config.teacher.train.num_steps=abc", "num_steps=abc must be a whole number"),
        ("--config.teacher.train.num_steps=-3", "num_steps must be positive, not -3"),
        ("--config.distillers=sdt", "distillers='sdt' is unknown (did you mean 'sdtt'?)"),
        ("--config.teacher.train.num_stepz=3", "num_stepz"),
        ("--stages=distil,evaluate", "--stages='distil' is unknown (did you mean 'distill'?)"),
        ("--stages=", "--stages= names no stage"),
        ("--stagess=distill", "flag 'stagess'"),
        ("--distributed=maybe", "--distributed=maybe"),
        ("distill", "unknown argument 'distill'"),
        ("--spec=x", "flag 'spec'"),  # of launch.pod, not of the run
    ],
)
def test_what_the_run_would_refuse_is_refused_before_a_pod_is_asked_for(option, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        check([CONFIG, option])
    fields = ["--config.evaluation.num_steps=(4,8)", "--workdir=gs://b/x"]
    common = ["--distributed=on", "--compilation_cache=", "--verbosity=1", "--noalsologtostderr"]
    check([CONFIG, *fields, "--stages=distill", *common])
    check([CONFIG, *fields, "--replay=distill/2", *common])
    with pytest.raises(ConfigError, match="no stage runs, so --stages would change nothing"):
        check([CONFIG, "--replay=distill/2", "--stages=distill"])


MODEL = "--config.mesh.model="


@pytest.mark.parametrize(
    ("accelerator", "slices", "options", "said"),
    [
        ("v5litepod-128", 1, [], ""),
        # 128 sequences over 256 chips, over 128 pairs of them, and over 512 pairs.
        ("v5litepod-256", 1, [], "distill.train.batch_size=128 cannot be split"),
        ("v5litepod-256", 1, [f"{MODEL}2"], ""),
        ("v5litepod-256", 4, [f"{MODEL}2"], "batch_size=512 cannot|batch_size=128 cannot"),
        ("v5p-512", 1, [], "the nearest that can is 256"),
        ("h100", 17, [], "teacher.train.batch_size=512 cannot be split"),
        ("h100", 2, [], ""),
        # The mesh: of devices, of slices, of 12 heads.
        ("v6e-16", 1, ["--config.mesh.fsdp=3"], "mesh.fsdp=3 does not divide the 16 devices"),
        ("v6e-16", 1, ["--config.mesh.data=7"], "mesh.data=7 times"),
        ("v6e-16", 2, ["--config.mesh.data=1", "--config.mesh.fsdp=1", f"{MODEL}32"], "2 slices"),
        # The processes' kernels tell JAX the nodes of GPUs apart; each is a slice to it.
        ("h100", 4, ["--config.mesh.data=2", "--config.mesh.fsdp=2", f"{MODEL}8"], "4 slices"),
        ("v6e-16", 1, [f"{MODEL}8"], "network of config.teacher: .* size 12 cannot"),
        (
            "v6e-16",
            1,
            ["--config.judge.model.num_heads=6", f"{MODEL}4"],
            "config.judge: .* 6 cannot",
        ),
        # What is not trained, or not by these stages.
        ("v6e-256", 1, ["--stages=data,evaluate,report"], ""),
        ("v6e-256", 1, ["--stages=teacher,judge"], ""),
        ("v5p-1024", 1, ["--stages=teacher", "--config.teacher.checkpoint=gs://bucket/run"], ""),
        ("v5p-1024", 1, ["--replay=distill/2"], ""),
        (
            "v5p-1024",
            1,
            ["--config.distillers=alpha", "--stages=distill"],
            "alpha.train.batch_size",
        ),
    ],
)
def test_what_the_chips_cannot_split_is_refused_before_they_are_rented(
    accelerator, slices, options, said
):
    if not said:
        check([CONFIG, *options], accelerator, slices)
        return
    with pytest.raises(ConfigError, match=said) as caught:
        check([CONFIG, *options], accelerator, slices)
    assert str(caught.value).startswith(f"On {accelerator}{f' × {slices}' if slices > 1 else ''}: ")


@pytest.mark.parametrize("path", sorted(SPECS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_the_specs_of_the_repository_run_on_their_chips(path):
    """There were more chips than sequences in a batch, so that the pods would have ended with status 2."""
    spec = importlib.import_module(f"launch.specs.{path.stem}").get_config()
    spec = from_mapping(PodSpec, spec.to_dict(), where="spec")
    check([f"--config={ROOT / spec.config}", *spec.overrides], spec.accelerator, spec.slices)
