"""Task files. Oracle: items as lm-evaluation-harness 0.4.13 words them, written out."""

import json

import pytest

from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.continuations import Choice, Cloze
from sdtt_jax.evaluation.tasks import read_task

ROWS = {
    "lambada": (
        {"text": "he went to the old house"},
        Cloze("he went to the old", " house"),
    ),
    "arc": (
        {
            "id": "1",
            "question": "What is wet?",
            "choices": {"text": ["fire", "rain"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        Choice("Question: What is wet?\nAnswer:", (" fire", " rain"), 1),
    ),
    "hellaswag": (
        {
            "activity_label": "Baking",
            "ctx_a": "[header] How to bake [title] Mix it.",
            "ctx_b": "then she",
            "endings": ["eats  it. [step] Now", "runs."],
            "label": "0",
        },
        Choice("Baking: How to bake. Mix it. Then she", (" eats it. Now", " runs."), 0),
    ),
    "mathqa": (
        {
            "Problem": "1 + 1 ?",
            "options": "a ) 38 , b ) rs . 1,200 , c ) 2 , d ) 4 / 5 , e ) none of these",
            "correct": "c",
        },
        Choice(
            "Question: 1 + 1 ?\nAnswer:",
            (" 38", " rs . 1,200", " 2", " 4 / 5", " none of these"),
            2,
        ),
    ),
    "piqa": (
        {"goal": "open it", "sol1": "push", "sol2": "eat", "label": 0},
        Choice("Question: open it\nAnswer:", (" push", " eat"), 0),
    ),
    "winogrande": (
        {"sentence": "So _ was late.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        Choice(("So Ann", "So Bea"), (" was late.", " was late."), 1),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_worded_as_the_harness_does(tmp_path, name):
    row, expected = ROWS[name]
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n", "utf-8")
    assert read_task(name, path) == [expected, expected]


@pytest.mark.parametrize("end", ["", " ", "\n", " \t\r\n", "\u00a0"])
def test_the_last_word_is_no_white_space(tmp_path, end):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"text": f"he\r\nwent home{end}"}), "utf-8-sig")
    assert read_task("lambada", path) == [Cloze("he\nwent", " home")]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("lambada", {"text": ""}),
        ("lambada", {"text": " \n "}),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": " ", "label": 0}),
        (
            "winogrande",
            {"sentence": "So was _ ", "option1": "Ann", "option2": "Bea", "answer": "2"},
        ),
    ],
)
def test_an_ending_of_white_space_alone_is_named(tmp_path, name, row):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    with pytest.raises(DataError, match=r"line 1, .*an ending is empty or white space"):
        read_task(name, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no items"),
        ("{}", "line 1, has no field 'goal'"),
        ("\n[1]", "line 2, is not of the task's form"),
        ('{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}', "answer=2 is not one of the 2"),
        ("{", "line 1, is not of the task's form"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, content, message):
    path = tmp_path / "task.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        read_task("piqa", path)


def test_unknown_tasks_and_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.jsonl does not exist"):
        read_task("piqa", tmp_path / "no.jsonl")
    with pytest.raises(ConfigError, match="task='quiz' is unknown"):
        read_task("quiz", tmp_path / "no.jsonl")
