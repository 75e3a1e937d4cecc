"""The Python of README.md and the guides. Oracle: that it runs as written, with the smoke run as the demo."""

import re

import pytest

from tests.forking import ROOT

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Without docs/guides/published.md, whose files are on the hub.
GUIDES = ("distil", "sample", "sequences")
PAGES = ("README.md", "docs/index.md", *(f"docs/guides/{name}.md" for name in GUIDES))


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_runs(page, unbroken, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(unbroken.root)
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert capsys.readouterr().out.count("\n") >= 4 * ("print(" in "".join(blocks))
