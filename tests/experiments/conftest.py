"""What tests of runs share: a whole run of the smoke config, and compiled steps."""

import types
from typing import Any

import pytest

from experiments.stages import coupled, one_round, training
from tests.experiments.processes import SmokeRun, smoke_run
from tests.interchange.conftest import hub_of

__all__ = ["compiled_once", "hub_of", "unbroken"]


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke config from raw text to the report, never stopped; do not change it."""
    return smoke_run(tmp_path_factory)


@pytest.fixture(scope="module")
def compiled_once():
    """Lets runs in this process whose losses mean the same share compiled steps, as rounds of a run do."""
    make, steps = training.make_train_step, {}

    def made_once(loss, config):
        name = _meaning(loss), config
        if name not in steps:
            steps[name] = make(loss, config)
        return steps[name]

    with pytest.MonkeyPatch.context() as patch:
        for module in (training, coupled, one_round):
            patch.setattr(module, "make_train_step", made_once)
        yield


def _meaning(value: Any) -> Any:
    """What identifies a loss: its name and all that it closes over, by `repr` (perhaps an address)."""
    if not isinstance(value, types.FunctionType):
        return repr(value)
    cells = value.__closure__ or ()
    return value.__qualname__, *(_meaning(cell.cell_contents) for cell in cells)
