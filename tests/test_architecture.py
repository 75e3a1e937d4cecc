"""What the repository promises about its own shape, where no linter can check it.

The arrows between packages are import-linter contracts, and the ban on Linen outside the networks
is a rule of ruff (both in pyproject.toml). Here is the rest. The oracle is the text of the files.
"""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

from tools import floors

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = ("sdtt_jax", "experiments", "launch", "tools", "tests")
MAX_LINES = 400

# Folders that differ from machine to machine; /path/to/… and such are examples, not places.
MACHINE_PATH = re.compile(r"(?<![\w.}$-])/(?:home|root|Users|tmp|work|mnt|opt|scratch)/\w")
TEXT = {".py", ".sh", ".md", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".jinja"}


def python_files(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def imported_names(path: pathlib.Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_files_are_short():
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*CODE)
    }
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_every_folder_of_the_package_is_installed():
    """setuptools' `find:` leaves out folders without `__init__.py`."""
    folders = {path.parent for path in python_files("sdtt_jax")}
    assert [relative(path) for path in sorted(folders) if not (path / "__init__.py").exists()] == []


def test_tests_mirror_the_package():
    """tests/<room>/test_<module>.py is about a module of sdtt_jax/<room>, or of a folder in it."""
    packages = {path.name for path in (ROOT / "sdtt_jax").iterdir() if path.is_dir()}
    here = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    tested = {
        package for package in packages & here if any((ROOT / "tests" / package).rglob("test_*.py"))
    }
    with_modules = {
        path.relative_to(ROOT / "sdtt_jax").parts[0]
        for path in python_files("sdtt_jax")
        if path.stem != "__init__" and path.parent != ROOT / "sdtt_jax"
    }
    assert with_modules - tested == set()


def test_no_path_of_one_machine():
    found = []
    folders = [ROOT / name for name in (*CODE, "docs", ".ci") if (ROOT / name).exists()]
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix not in TEXT and path.name != "run":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_paths_come_through_one_door():
    """`as_path` knows homes and buckets; `Path` may only take a literal or `__file__`."""
    found = []
    for path in python_files("sdtt_jax", "experiments", "launch", "tools"):
        if relative(path) == "sdtt_jax/paths.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name, given = ast.unparse(node.func), node.args[0]
            literal = isinstance(given, ast.Constant) or ast.unparse(given) == "__file__"
            if (name in ("Path", "pathlib.Path") and not literal) or "expanduser" in name:
                found.append(f"{relative(path)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_no_import_brings_in_another_framework():
    """TFDS and Orbax can pull TensorFlow in behind our backs: ask a fresh interpreter.

    Nor may `scipy.stats` be imported, which one function needs: half a second of every program's start."""
    modules = [
        relative(path)[: -len(".py")].replace("/", ".").removesuffix(".__init__")
        for path in python_files("sdtt_jax")
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'tensorflow', 'torch', 'scipy.stats'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("sdtt_jax", "experiments", "launch", "tools"), ("eval", "docs", "smollm2", "beam")),
        (("tests",), ("test",)),
    ],
)
def test_every_import_is_declared(folders, extras):
    """No file relies on a package that only another package happens to bring."""
    declared = {canonical(name) for name in floors.floors(ROOT / "setup.cfg", extras)}
    owners = importlib.metadata.packages_distributions()
    missing = {}
    for path in python_files(*folders):
        outside = imported_names(path) - set(CODE) - sys.stdlib_module_names
        undeclared = {
            name
            for name in outside
            # Extras need not be installed; then a package and its import have the same name.
            if not {canonical(owner) for owner in owners.get(name, [name])} & declared
        }
        if undeclared:
            missing[relative(path)] = sorted(undeclared)
    assert missing == {}


def test_constraints_agree_with_the_floors():
    """Every requirement has a tested version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.split("==")[0]) for line in lines if not line.startswith("#")}
    required = {canonical(name) for name in floors.floors(ROOT / "setup.cfg", ("test",))}
    assert required - pinned == set()


@pytest.mark.parametrize("folder", CODE[:-1])
def test_every_room_says_what_it_is_for_and_what_it_may_use(folder):
    silent = []
    for path in python_files(folder):
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if "may use" not in text and path.parent != ROOT / "sdtt_jax":
                silent.append(relative(path))
    assert silent == []
