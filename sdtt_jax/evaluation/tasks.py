"""LAMBADA and multiple-choice sets from local JSONL files with the field names of the hub's data sets.

Questions and endings are put into words as lm-evaluation-harness (0.4) does, so that figures compare.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdtt_jax.config import choose
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.continuations import Choice, Cloze

_BRACKETS = re.compile(r"\[.*?\]")
_MATH_OPTIONS = re.compile(r"[a-e] \) (.*?)(?=, [b-e] \) |$)", re.DOTALL)


def lambada(row: Mapping[str, Any]) -> Cloze:
    """`text`: its last word, with the space before it, is the suffix."""
    prefix, space, word = row["text"].rpartition(" ")
    return Cloze(prefix, space + word)


def arc(row: Mapping[str, Any]) -> Choice:
    """`question`, `choices` (`text`, `label`), `answerKey`: ARC easy and challenge."""
    choices = row["choices"]
    return _question(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


def hellaswag(row: Mapping[str, Any]) -> Choice:
    """`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`: without WikiHow's marks in brackets."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    endings = tuple(f" {_without_marks(ending)}" for ending in row["endings"])
    return Choice(_without_marks(context), endings, int(row["label"]))


def mathqa(row: Mapping[str, Any]) -> Choice:
    """`Problem`, `options` ("a ) 38 , b ) 27.675 , …"), `correct` (a letter)."""
    options = [option.rstrip(" ,") for option in _MATH_OPTIONS.findall(row["options"])]
    return _question(row["Problem"], options, "abcde".index(row["correct"]))


def piqa(row: Mapping[str, Any]) -> Choice:
    """`goal`, `sol1`, `sol2`, `label`."""
    return _question(row["goal"], [row["sol1"], row["sol2"]], int(row["label"]))


def winogrande(row: Mapping[str, Any]) -> Choice:
    """`sentence` with `_`, `option1`, `option2`, `answer` ("1" or "2"): each option, then what follows."""
    before, _, behind = row["sentence"].partition("_")
    contexts = (before + row["option1"], before + row["option2"])
    return Choice(contexts, (f" {behind.strip()}",) * 2, ("1", "2").index(row["answer"]))


TASKS: dict[str, Callable[[Mapping[str, Any]], Cloze | Choice]] = {
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
      DataError: naming the line that is no JSON object of the task's form, or an empty file.
    """
    choose("task", name, TASKS)
    items = list(_items(TASKS[name], Path(path)))
    if not items:
        raise DataError(f"{path} holds no items; download the task's JSONL file again.")
    return items


def _items(
    parse: Callable[[Mapping[str, Any]], Cloze | Choice], path: Path
) -> Iterator[Cloze | Choice]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; put the task's JSONL file there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it must be JSONL in UTF-8.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse(json.loads(line))
        except KeyError as error:
            raise DataError(f"{path}, line {number}, has no field {error}.") from None
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise DataError(
                f"{path}, line {number}, is not of the task's form ({error})."
            ) from None


def _question(question: str, endings: list[str], answer: int) -> Choice:
    return Choice(
        f"Question: {question}\nAnswer:", tuple(f" {ending}" for ending in endings), answer
    )


def _without_marks(text: str) -> str:
    text = _BRACKETS.sub("", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
