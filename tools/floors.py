"""Prints the oldest version of every requirement that setup.cfg allows, as exact pins.

A minimum version that nobody has installed is a guess, so these are installed together and tested:

    python -m tools.floors > floors.txt
    CONSTRAINTS=floors.txt VENV=.venv-floors bash launch/test.sh

Uses the standard library only: it runs before anything is installed.
"""

import argparse
import configparser
import pathlib
import re

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?\s*>=\s*(?P<floor>[\w.]+)(?:\s*,.*)?")
_SETUP = pathlib.Path(__file__).resolve().parent.parent / "setup.cfg"


def floors(setup: pathlib.Path, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """The floors by requirement, in the order of the file: those of `install_requires` and of the extras."""
    parser = configparser.ConfigParser(comment_prefixes=("#",))
    with setup.open(encoding="utf-8") as file:
        parser.read_file(file)
    sections = [("install_requires", parser["options"]["install_requires"])]
    for extra in extras:
        if extra not in parser["options.extras_require"]:
            known = ", ".join(parser["options.extras_require"])
            raise SystemExit(f"{setup}: no extra is called {extra!r}; there are {known}.")
        sections.append((extra, parser["options.extras_require"][extra]))

    minimums: dict[str, str] = {}
    for where, requirements in sections:
        for requirement in filter(None, map(str.strip, requirements.split("\n"))):
            match = _REQUIREMENT.fullmatch(requirement)
            if match is None:
                raise SystemExit(
                    f"{setup}: {where}: {requirement!r} has no floor; write NAME >= VERSION."
                )
            minimums[match["name"]] = match["floor"]
    return minimums


def main() -> None:
    """Prints `NAME==FLOOR` lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--extras", default="test,docs", help="comma-separated; default: test,docs")
    parser.add_argument("--setup", type=pathlib.Path, default=_SETUP, help="default: setup.cfg")
    arguments = parser.parse_args()
    extras = tuple(extra for extra in arguments.extras.split(",") if extra)
    for name, floor in floors(arguments.setup, extras).items():
        print(f"{name}=={floor}")


if __name__ == "__main__":
    main()
