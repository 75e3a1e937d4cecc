"""Normalisations of text that make a vocabulary smaller. All are idempotent."""

import re
from collections.abc import Callable

_OUTSIDE_A_TO_Z = re.compile(r"[^a-z]+")


def text8(text: str) -> str:
    """Lowercase; every run of anything outside a-z becomes one space; none at either end.

    The 27 characters of the text8 benchmark, except that digits are dropped rather than spelled
    out. The apostrophe of a contraction becomes a space like everything else.
    """
    return _OUTSIDE_A_TO_Z.sub(" ", text.lower()).strip(" ")


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": str, "text8": text8}
