"""What README.md, CONTRIBUTING.md and docs/ say of the repository. The oracle is the repository.

Links and names of the API are checked by `mkdocs build --strict`, Python examples by
tests/experiments/test_readme.py.
"""

import dataclasses
import importlib
import pathlib
import re
import shlex

import pytest

import sdtt_jax
from experiments.cli.overrides import check_fields
from experiments.settings import check_overrides
from launch.pods.spec import PodSpec
from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.interchange.layouts import LAYOUTS
from sdtt_jax.interchange.relatives import RELATIVES
from sdtt_jax.interchange.tables.families import FAMILIES
from tests.test_architecture import ROOT, python_files, relative

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name != "CHANGELOG.md"
)
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
# A module of ours, or a name of the API, at the beginning of a span.
MODULE = re.compile(r"(?:sdtt_jax|experiments|launch|tools)(?:\.\w+)+")
# `folder/file.py` in a text; not gs://…, OWNER/NAME, or what a run writes.
FILE = re.compile(r"`((?:\.ci|sdtt_jax|experiments|launch|tools|tests|docs)/[\w./-]*)`")
# A flag of absl or argparse, or a field of a dataclass from which a command makes its flags.
DEFINED = re.compile(
    r"""(?:DEFINE_\w+|define_config_file|add_argument)\(\s*["'](?:--)?(\w+)["']|^    (\w+): .* = """,
    re.MULTILINE,
)


def commands(page: pathlib.Path) -> list[str]:
    """The lines of shell in a page's blocks, continued lines joined, comments removed."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["language"] in ("", "bash", "sh"):
            text = block["text"].replace("\\\n", " ")
            found += [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line for line in found if re.match(r"(\w+=\S+ )*(\S*/)?(python3?|bash) ", line)]


def spans(page: pathlib.Path) -> list[str]:
    """The code in a page's running text."""
    return SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))


def check_fields_of_flags(words: list[str]) -> None:
    """Raises `ConfigError` for a field in `--config.FIELD` or `--spec.FIELD` that does not exist."""
    check_overrides([word for word in words if re.match(r"--config\.[a-z]", word)])
    check_fields([word for word in words if re.match(r"--spec\.[a-z]", word)], "spec", PodSpec)


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the repository or a name in a module of the library."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module, _, attribute = name.rpartition(".")
    # The modules of commands define flags, so two of them cannot be imported together.
    return module.startswith("sdtt_jax") and hasattr(importlib.import_module(module), attribute)


COMMANDS = [
    pytest.param(line, id=f"{relative(page)}: {line}") for page in PAGES for line in commands(page)
]


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Names of the flags of all commands."""
    texts = (
        path.read_text(encoding="utf-8")
        for path in python_files("experiments", "launch", "tools", "sdtt_jax")
    )
    return {name for text in texts for names in DEFINED.findall(text) for name in names}


def test_pages_have_commands():
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exists_and_so_do_its_flags(line, flags):
    ours = "pytest" not in line and "pip" not in line
    words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "-m" and after.split(".")[0] in ("experiments", "launch", "tools"):
            place = ROOT / after.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), after
        if word.startswith(("launch/", "experiments/", "tools/")):
            assert (ROOT / word).exists(), word
        if ours and (flag := re.match(r"--(\w+)", word)):
            assert flag[1] in flags, word
    check_fields_of_flags(words)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_flags_and_fields_in_running_text_exist(page, flags):
    ours = [span for span in spans(page) if span.startswith("--") or MODULE.match(span)]
    words = [word for span in ours for word in span.split()]
    check_fields_of_flags(words)
    # The pages of the launchers also speak of flags of gcloud, kubectl, srun and others.
    if page.parent.name != "pods":
        named = {flag[1] for word in words if (flag := re.match(r"--(\w+)", word))}
        assert named - {"help"} - flags == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_modules_and_names_in_running_text_exist(page):
    named = {name[0] for span in spans(page) if (name := MODULE.match(span))}
    assert [name for name in sorted(named) if not exists(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_are_named_exist(page):
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_extras_are_quoted(page):
    """zsh, the shell of a Mac, takes the brackets for a pattern of file names and refuses the command."""
    assert not re.search(r"pip install [^`#\n'\"]*\.\[", page.read_text(encoding="utf-8"))


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_overview_of_the_api_has_every_name():
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[`(\w+)`\]", text)) == set(sdtt_jax.__all__)


def test_the_layers_name_every_module_and_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## The layers\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[1] for line in table.splitlines() if re.match(r"\| \d", line)]
    found = {path.stem for path in (ROOT / "sdtt_jax").glob("[a-z]*") if path.name != "py.typed"}
    assert set(SPAN.findall(" ".join(rows))) - {"experiments", "launch", "tools"} == found


def test_the_guide_gives_the_defaults_of_the_decoders():
    """Except those of `learnt`, which come from the checkpoint's folder."""
    text = (ROOT / "docs/guides/sample.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`(?: \(default\))? \| .* \|(.*)\|$", text, re.MULTILINE)
    cells = {mode: options for mode, options in rows if mode in DECODERS}
    cells["remdm-confidence"] = cells["remdm-confidence"].replace("as `remdm`", cells["remdm"])
    assert set(cells) == set(DECODERS)
    for mode in set(cells) - {"learnt"}:
        given = dict(span.split("=") for span in SPAN.findall(cells[mode]) if "=" in span)
        defaults = {
            field.name: f"{field.default:g}" if isinstance(field.default, float) else field.default
            for field in dataclasses.fields(DECODERS[mode].options)
        }
        assert given == {name: str(default) for name, default in defaults.items()}, mode


def test_every_layout_has_a_row_of_what_it_was_checked_against():
    page = (ROOT / "docs/guides/published.md").read_text(encoding="utf-8")
    table = page.split("### Checked against\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert {len(row) for row in rows} == {4}
    assert {name for row in rows for name in SPAN.findall(row[0])} == set(LAYOUTS)
    families = {name for row in rows for name in SPAN.findall(row[1].split(":")[0])}
    assert families == {*FAMILIES, *RELATIVES}
    for row in rows:
        # A test above checks that these files exist.
        assert FILE.search(row[3]), row
