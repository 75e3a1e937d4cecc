"""experiments.sample. Oracle of a causal model's texts: `CausalModel.sample` with the same key."""

import json
import re

import jax
import numpy as np
import pytest

import sdtt_jax
from tests.experiments.instructed import instructed
from tests.experiments.processes import call


def test_a_causal_model_writes_what_its_sample_writes(unbroken, tmp_path):
    judge, file = f"--checkpoint={unbroken.root / 'judge'}", tmp_path / "texts.jsonl"
    asked = (
        "--prompt=in the",
        "--num_samples=3",
        "--batch_size=2",
        "--temperature=0.5",
        "--seed=4",
    )
    done = call("sample", judge, *asked, f"--output={file}")
    assert done.status == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    model = sdtt_jax.load(unbroken.root / "judge")
    # As many tokens as fit into a text of 32.
    expected = model.sample(jax.random.key(4), 3, 26, "in the", batch_size=2, temperature=0.5)
    np.testing.assert_array_equal([line["tokens"] for line in lines], expected)
    texts = [model.tokenizer.decode(row) for row in np.asarray(expected)]
    assert [line["text"] for line in lines] == texts
    assert [line["nfe"] for line in lines] == [26] * 3
    assert all(text in done.stdout for text in texts)
    assert "judge/final: 32 tokens, one by one" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--num_steps=8",), "--num_steps is for denoisers, and .*judge/final is causal"),
        (("--mode=confidence",), "--mode is for denoisers"),
        (("--infill=a [3]",), "--infill is for denoisers"),
        (("--prompt=a", "--prompt=b"), "--prompt is given 2 times"),
        (("--num_tokens=0",), "--num_tokens must be positive, not 0"),
        (("--prompt=in the", "--num_tokens=27"), "27 do not fit behind the prompt's 6: .* of 32"),
    ],
)
def test_what_a_causal_model_cannot_do_is_refused(unbroken, flags, said):
    done = call("sample", f"--checkpoint={unbroken.root / 'judge'}", *flags)
    assert done.status == 2
    assert done.stderr.startswith("Error: ")
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("flags", "said"), [((), "32 tokens"), (("--num_tokens=5",), "5 tokens after the given text")]
)
def test_the_number_of_tokens_to_write_is_told(tmp_path, flags, said):
    """With --num_tokens the length of the training sequences was told."""
    checkpoint = f"--checkpoint={instructed(tmp_path)[1] / 'teacher'}"
    done = call("sample", checkpoint, "--prompt=ask", "--num_steps=2", "--num_samples=1", *flags)
    assert done.status == 0, done.stderr
    assert f"teacher/final: 2 steps, {said}\n" in done.stderr


@pytest.mark.parametrize(("num_steps", "times"), [(2, 1), (32, 0)])
def test_steps_of_a_draft_that_are_too_few_are_told_once(unbroken, num_steps, times):
    """A draft of one token is one token a step: 2 steps leave 30 of 32, and 32 leave none."""
    done = call(
        "sample",
        f"--checkpoint={unbroken.root}",
        f"--helper={unbroken.root / 'judge'}",
        "--mode=speculative:window=1",
        f"--num_steps={num_steps}",
        "--num_samples=3",
        "--batch_size=2",
    )
    assert done.status == 0, done.stderr
    said = "mode=speculative:window=1: --num_steps=2 left tokens masked, which were filled with"
    assert done.stderr.count(said) == times
