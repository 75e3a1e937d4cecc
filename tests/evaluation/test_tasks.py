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


@pytest.mark.parametrize("space", ["\n", "\t", "\u00a0", "\u3000", " \n"])
def test_words_are_separated_by_white_space_of_any_kind(tmp_path, space):
    """The last word alone is scored; the character before it belongs to it."""
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"text": f"the last{space}word"}), "utf-8")
    assert read_task("lambada", path) == [Cloze("the last" + space[:-1], space[-1] + "word")]


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("lambada", {"text": None}, "text must be a text, not None"),
        ("lambada", {"text": "word"}, "text is one word, with nothing before it"),
        ("lambada", {"text": " word"}, "text is one word, with nothing before it"),
        ("lambada", {"text": "the last word ."}, r"text ends with '\.', which is no word"),
        ("lambada", {"text": "the last \u200b"}, r"text ends with '\\u200b', which is no word"),
        ("arc", {"question": None}, "question must be a text, not None"),
        ("arc", {"question": {"stem": "a"}}, "question must be a text, not {'stem'"),
        ("arc", {"choices": "ab"}, "choices must hold text and label, not 'ab'"),
        ("arc", {"choices": {"text": "xy", "label": ["A", "B"]}}, "text must be a list of texts"),
        ("arc", {"choices": {"text": ["x", "y"], "label": "AB"}}, "label must be a list of texts"),
        (
            "arc",
            {"choices": {"text": ["x", "y", "z"], "label": ["A", "B"]}},
            "has 3 texts with the",
        ),
        ("arc", {"choices": {"text": ["x", "y"], "label": ["B", "B"]}}, "with the labels B, B"),
        ("arc", {"answerKey": "C"}, "answerKey must be one of A, B, not 'C'"),
        ("hellaswag", {"activity_label": None}, "activity_label must be a text, not None"),
        ("hellaswag", {"endings": "runs"}, "endings must be a list of texts, not 'runs'"),
        ("hellaswag", {"endings": ["a", 2]}, "endings must be a list of texts"),
        ("hellaswag", {"label": ""}, "label must be a whole number below 2, not ''"),
        ("mathqa", {"correct": ""}, "correct must be one of a, b, c, d, e, not ''"),
        ("mathqa", {"correct": "ab"}, "correct must be one of .* not 'ab'"),
        ("mathqa", {"options": ["a"]}, "options must be a text"),
        ("mathqa", {"options": "a) 1, b) 2"}, r"options must be such as .* not 'a\) 1, b\) 2'"),
        ("mathqa", {"options": "a ) 1"}, "options must be such as"),
        ("mathqa", {"options": "a ) 1 , b ) 2"}, "correct must be one of a, b, not 'c'"),
        ("piqa", {"label": 1.7}, r"label must be a whole number below 2, not 1\.7"),
        ("piqa", {"label": True}, "label must be a whole number below 2, not True"),
        ("piqa", {"label": -1}, "label must be a whole number below 2, not -1"),
        ("piqa", {"sol1": None}, "sol1 must be a text, not None"),
        ("piqa", {"goal": ["x"]}, r"goal must be a text, not \['x'\]"),
        ("winogrande", {"sentence": "a _ b _ c"}, "sentence must have one gap, _, not 2"),
        ("winogrande", {"sentence": "a b"}, "sentence must have one gap, _, not 0"),
        ("winogrande", {"answer": ""}, "answer must be one of 1, 2, not ''"),
        ("winogrande", {"option2": 3}, "option2 must be a text, not 3"),
    ],
)
def test_a_row_that_is_none_of_the_task_says_which_field_is_wrong(tmp_path, name, fields, said):
    """A value that Python turns into a text or a number would be scored as if it were the question."""
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(ROWS[name][0] | fields), "utf-8")
    with pytest.raises(
        DataError, match=rf"task\.jsonl, line 1, is not of the task's form \(.*{said}"
    ):
        read_task(name, path)


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
        (
            '{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}',
            "label must be a whole number below 2, not 2",
        ),
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
