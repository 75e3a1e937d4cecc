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
    ],
)
def test_what_the_run_would_refuse_is_refused_before_a_pod_is_asked_for(option, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_run([CONFIG, option])
    check_run([CONFIG, "--config.evaluation.num_steps=(4,8)", "--stages=distill"])
