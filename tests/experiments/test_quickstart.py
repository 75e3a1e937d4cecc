"""The notebook. Oracle: that every cell runs, on the smoke run instead of the demo's."""

import json

import pytest

from tests.forking import ROOT

PATH = ROOT / "experiments" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of the notebook's machinery are not ours
def test_every_cell_runs(unbroken, monkeypatch):
    monkeypatch.setenv("QUICKSTART_RUN", str(unbroken.root))
    # The default config is the demo's, which this run is not: a finished one is taken as it is.
    monkeypatch.delenv("QUICKSTART_CONFIG", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # They take half a second, which every process would spend to collect the tests.
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(PATH, as_version=4)
    where = {"metadata": {"path": str(PATH.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in said if output.get("name") == "stderr"]
    text = "".join(output.get("text", "") for output in said)
    for words in ("4 steps", "network calls", "shuffled:", "student:"):
        assert words in text


def test_what_is_kept_was_run_from_top_to_bottom():
    cells = json.loads(PATH.read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for cell in cells:
        assert all(output["output_type"] != "error" for output in cell.get("outputs", []))
