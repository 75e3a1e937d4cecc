"""LAMBADA and multiple-choice sets from local JSONL files with the field names of the hub's data sets.

Questions and endings are formatted as in lm-evaluation-harness (0.4), so that figures are comparable.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdtt_jax.config import choose, require
from sdtt_jax.data.normalize import without_traces_of_files
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.continuations import Choice, Cloze
from sdtt_jax.paths import as_path, parse_json, text_lines

_BRACKETS = re.compile(r"\[.*?\]")
_MATH_OPTIONS = re.compile(r"[a-e] \) (.*?)(?=, [b-e] \) |$)", re.DOTALL)


def lambada(row: Mapping[str, Any]) -> Cloze:
    """`text`: the suffix is its last word with the space before it; trailing white space is ignored."""
    prefix, space, word = row["text"].rstrip().rpartition(" ")
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
      DataError: a line, which is named, is not a JSON object of the task's form; or the file is empty.
    """
    choose("task", name, TASKS)
    items = list(_items(TASKS[name], as_path(path)))
    if not items:
        raise DataError(f"{path} holds no items; download the task's JSONL file again.")
    return items


def _items(
    parse: Callable[[Mapping[str, Any]], Cloze | Choice], path: Path
) -> Iterator[Cloze | Choice]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; put the task's JSONL file there.")
    for where, line in text_lines(path):
        fault = "is not of the task's form"
        row = _without_traces(parse_json(line, where + ",", fault=fault))
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


def _without_traces(value: Any) -> Any:
    if isinstance(value, str):
        return without_traces_of_files(value)
    if isinstance(value, list):
        return [_without_traces(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_traces(each) for name, each in value.items()}
    return value


def _question(question: str, endings: list[str], answer: int) -> Choice:
    return Choice(
        f"Question: {question}\nAnswer:", tuple(f" {ending}" for ending in endings), answer
    )


def _without_marks(text: str) -> str:
    text = _BRACKETS.sub("", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
