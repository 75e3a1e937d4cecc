"""An extension for mkdocs' API pages: `a, b: what they are` under Args describes both arguments.

What a function returns is one entry unless each value is named (`first: …`), and a field's comment, after it
or above it, describes the field.

Google's style allows one entry for several arguments; Griffe, which reads the docstrings, wants one each, and
takes every line under Returns for the description of another value. It then checks that every argument that
is described exists, so that `mkdocs build --strict` finds stale ones.
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes):$", re.MULTILINE)
GROUPED = re.compile(
    r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+):(?P<text>.*(?:\n(?P=indent) +.*)*)",
    re.M,
)

# The first line under Returns, without the name of a value, and the lines below it.
RETURNS = re.compile(
    r"^((?:Returns|Yields):\n(?P<indent> +)(?! |\w+: ).*)(?P<rest>(?:\n(?P=indent).*)+)",
    re.MULTILINE,
)


def one_entry_each(docstring: str) -> str:
    """The docstring with one entry for each argument or attribute.

    >>> print(one_entry_each("Adds.\\n\\nArgs:\\n  a, b: numbers."))
    Adds.
    <BLANKLINE>
    Args:
      a: numbers.
      b: numbers.
    """
    head, *sections = SECTION.split(docstring)
    for index in range(1, len(sections), 2):
        sections[index] = GROUPED.sub(_split, sections[index])
    return head + "".join(
        f"{name}:{text}" for name, text in zip(sections[::2], sections[1::2], strict=True)
    )


def whole_returns(docstring: str) -> str:
    """The docstring with the lines under Returns or Yields in one entry, unless the first has a name.

    >>> print(whole_returns("Adds.\\n\\nReturns:\\n  The sum, and\\n  what is left."))
    Adds.
    <BLANKLINE>
    Returns:
      The sum, and
        what is left.
    """
    return RETURNS.sub(
        lambda found: found[1] + found["rest"].replace("\n", "\n" + found["indent"]), docstring
    )


def _split(entry: re.Match[str]) -> str:
    names = entry["names"].split(", ")
    return "\n".join(f"{entry['indent']}{name}:{entry['text']}" for name in names)


class GroupedArguments(griffe.Extension):
    """Splits the entries of every docstring that Griffe reads, and reads the comments of fields."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one module, class, function or attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = whole_returns(one_entry_each(obj.docstring.value))
        elif obj.is_attribute and obj.parent is not None and obj.parent.is_class:
            path: Any = obj.filepath
            lines = obj.lines_collection[path][: obj.endlineno]
            comment = [lines[-1].partition("  # ")[2]]
            above = lines[: (obj.lineno or 1) - 1]
            while not comment[-1] and above and above[-1].lstrip().startswith("# "):
                comment.insert(0, above.pop().strip(" #"))
            if text := "\n".join(comment).strip():
                obj.docstring = griffe.Docstring(text, lineno=obj.lineno, parent=obj)
