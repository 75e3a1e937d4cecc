"""The run's options as launch.pod reads them. Oracle: the message, which is the run's own."""

import re

import pytest

from launch.pods.options import check_run
from sdtt_jax.errors import ConfigError
from tests.forking import ROOT

CONFIG = f"--config={ROOT / 'experiments' / 'configs' / 'owt_small.py'}"


# A warning from ml_collections' own reading of a config file.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
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
        check_run([CONFIG, option])
    fields = ["--config.evaluation.num_steps=(4,8)", "--workdir=gs://b/x"]
    common = ["--distributed=on", "--compilation_cache=", "--verbosity=1", "--noalsologtostderr"]
    check_run([CONFIG, *fields, "--stages=distill", *common])
    check_run([CONFIG, *fields, "--replay=distill/2", *common])
    with pytest.raises(ConfigError, match="no stage runs, so --stages would change nothing"):
        check_run([CONFIG, "--replay=distill/2", "--stages=distill"])
