"""The oldest versions that the requirements allow. Oracle: files of requirements written by hand."""

import pytest

from tools import floors


def test_floors_reject_a_requirement_without_one(tmp_path):
    setup = tmp_path / "setup.cfg"
    setup.write_text("[options]\ninstall_requires =\n    numpy\n[options.extras_require]\n")
    with pytest.raises(SystemExit, match=r"install_requires: 'numpy' has no floor"):
        floors.floors(setup)


def test_floors_read_extras_and_ceilings(tmp_path):
    setup = tmp_path / "setup.cfg"
    setup.write_text(
        "[options]\ninstall_requires =\n    a-b >= 1.2, < 2\n"
        "[options.extras_require]\ntpu =\n    jax[tpu] >= 0.10\n"
    )
    assert floors.floors(setup, ("tpu",)) == {"a-b": "1.2", "jax": "0.10"}
    with pytest.raises(SystemExit, match="no extra is called 'gpu'; there are tpu"):
        floors.floors(setup, ("gpu",))
