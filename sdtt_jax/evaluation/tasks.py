"""LAMBADA and multiple-choice sets from local JSONL files with the field names of the hub's data sets.

Questions and endings are formatted as in lm-evaluation-harness (0.4), so that figures are comparable.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from sdtt_jax.config import choose, require
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.continuations import Choice, Cloze
from sdtt_jax.formats import parse_json, text_lines
from sdtt_jax.paths import as_path

Row = Mapping[str, Any]
_BRACKETS = re.compile(r"\[.*?\]")
_MATH_OPTIONS = re.compile(r"[a-e] \) (.*?)(?=, [b-e] \) |$)", re.DOTALL)


def lambada(row: Row) -> Cloze:
    """`text`: the suffix is its last word with the white space before it; trailing white space is ignored.

    The harness separates words at U+0020 alone, as they are in the published file.
    """
    text = _text(row, "text").rstrip()
    words = text.split()
    if not words:
        return Cloze("", "")
    require(len(words) > 1, "text is one word, with nothing before it")
    require(any(map(str.isalnum, words[-1])), f"text ends with {words[-1]!r}, which is no word")
    cut = len(text) - len(words[-1]) - 1
    return Cloze(text[:cut], text[cut:])


def arc(row: Row) -> Choice:
    """`question`, `choices` (`text`, `label`), `answerKey`: ARC easy and challenge."""
    choices = row["choices"]
    require(isinstance(choices, dict), f"choices must hold text and label, not {choices!r:.60}")
    texts, labels = _texts(choices, "text"), _texts(choices, "label")
    require(
        len(texts) == len(labels) == len({*labels}),
        f"choices has {len(texts)} texts with the labels {', '.join(labels)}; each needs one of its own",
    )
    return _question(_text(row, "question"), texts, _place(row, "answerKey", labels))


def hellaswag(row: Row) -> Choice:
    """`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`: without WikiHow's marks in brackets."""
    label, begun, going_on = (_text(row, name) for name in ("activity_label", "ctx_a", "ctx_b"))
    context = f"{label}: {begun} {going_on.capitalize()}"
    endings = tuple(f" {_without_marks(ending)}" for ending in _texts(row, "endings"))
    return Choice(_without_marks(context), endings, _number(row, "label", len(endings)))


def mathqa(row: Row) -> Choice:
    """`Problem`, `options` ("a ) 38 , b ) 27.675 , …"), `correct` (a letter)."""
    said = _text(row, "options")
    options = [option.rstrip(" ,") for option in _MATH_OPTIONS.findall(said)]
    require(len(options) > 1, f"options must be such as 'a ) 1 , b ) 2', not {said!r:.60}")
    letters = "abcde"[: len(options)]
    return _question(_text(row, "Problem"), options, _place(row, "correct", letters))


def piqa(row: Row) -> Choice:
    """`goal`, `sol1`, `sol2`, `label`."""
    goal, *endings = (_text(row, name) for name in ("goal", "sol1", "sol2"))
    return _question(goal, endings, _number(row, "label", 2))


def winogrande(row: Row) -> Choice:
    """`sentence` with `_`, `option1`, `option2`, `answer` ("1" or "2"): each option, then what follows."""
    sentence = _text(row, "sentence")
    require(sentence.count("_") == 1, f"sentence must have one gap, _, not {sentence.count('_')}")
    before, _, behind = sentence.partition("_")
    contexts = tuple(before + _text(row, name) for name in ("option1", "option2"))
    return Choice(contexts, (f" {behind.strip()}",) * 2, _place(row, "answer", "12"))


def _text(row: Row, name: str) -> str:
    value = row[name]
    require(isinstance(value, str), f"{name} must be a text, not {value!r:.60}")
    return str(value)


def _texts(row: Row, name: str) -> list[str]:
    value = row[name]
    listed = isinstance(value, list) and all(isinstance(each, str) for each in value)
    require(listed, f"{name} must be a list of texts, not {value!r:.60}")
    return list(value)


def _number(row: Row, name: str, count: int) -> int:
    """The place of the right one of `count` endings: a number or its digits, as the data sets have it."""
    value = row[name]
    digits = isinstance(value, str) and value.isdecimal()
    right = (digits or type(value) is int) and 0 <= int(value) < count
    require(right, f"{name} must be a whole number below {count}, not {value!r:.60}")
    return int(value)


def _place(row: Row, name: str, names: Iterable[str]) -> int:
    """The place of the right ending, given by its name."""
    value, known = row[name], list(names)
    require(value in known, f"{name} must be one of {', '.join(known)}, not {value!r:.60}")
    return known.index(value)


TASKS: dict[str, Callable[[Row], Cloze | Choice]] = {
    "lambada": lambada,
    "arc": arc,
    "hellaswag": hellaswag,
    "mathqa": mathqa,
    "piqa": piqa,
    "winogrande": winogrande,
}


def read_task(name: str, path: str | Path) -> list[Any]:
    """The items of a local JSONL file: `Cloze` for `lambada`, `Choice` for all others.

    Raises:
      ConfigError: no such task or file.
      DataError: a line, which is named, is not a JSON object of the task's form; or the file is empty.
    """
    choose("task", name, TASKS)
    items = list(_items(TASKS[name], as_path(path)))
    if not items:
        raise DataError(f"{path} holds no items; download the task's JSONL file again.")
    return items


def _items(parse: Callable[[Row], Cloze | Choice], path: Path) -> Iterator[Cloze | Choice]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; put the task's JSONL file there.")
    for where, line in text_lines(path):
        fault = "is not of the task's form"
        found = parse_json(line, where + ",", fault=fault)
        row = jax.tree.map(lambda x: without_traces_of_files(x) if isinstance(x, str) else x, found)
        try:
            item = parse(row)
            clozes = [item] if isinstance(item, Cloze) else item.clozes()
            require(
                all(cloze.suffix.strip() for cloze in clozes), "an ending is empty or white space"
            )
            yield item
        except KeyError as error:
            raise DataError(f"{where}, has no field {error}.") from None
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(f"{where}, {fault} ({error}).") from None


def _question(question: str, endings: list[str], answer: int) -> Choice:
    return Choice(
        f"Question: {question}\nAnswer:", tuple(f" {ending}" for ending in endings), answer
    )


def _without_marks(text: str) -> str:
    text = _BRACKETS.sub("", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
