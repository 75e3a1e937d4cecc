"""GPT-2 and DiffuGPT as what a run's teacher starts from, or is. Oracles: the plain twin of DiffuGPT on the
file's tensors, parameters of the base.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

import sdtt_jax
from experiments.settings import config_dict, run_config
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.export import export_reference
from sdtt_jax.networks.lora import LoraConfig
from tests.experiments.small import TEXT
from tests.experiments.test_adaptation import STAGES, adapting
from tests.interchange.llama_models import vocabulary
from tests.interchange.test_diffugpt import plain_logits, repository, tensors

WORDS = ["<s>", "</s>", "<mask>", *sorted(set(TEXT.split()))]
POSITIONS = 20
END = WORDS.index("</s>")


def put(folder, *, causal):
    """A model of words, with more positions than a run uses; a denoiser has one more row, for MASK."""
    named = tensors(len(WORDS) + (not causal), POSITIONS)
    if causal:
        named = {
            name.removeprefix("denoise_model.").replace("embed_tokens", "wte"): x
            for name, x in named.items()
        }
    sizes = {"vocab_size": len(WORDS), "n_positions": POSITIONS, "eos_token_id": END}
    repository(folder, named, **sizes)
    vocabulary({word: i for i, word in enumerate(WORDS)}).save(str(folder / "tokenizer.json"))
    return folder, named


def run(config, root, stages=STAGES):
    with open_run(config_dict(config), root) as opened:
        run_stages(opened, stages)
    return sdtt_jax.load(root)


def taken(folder, base, **distill):
    """The config of a run whose teacher is DiffuGPT as it is."""
    config = run_config(adapting(folder, base))
    data = dataclasses.replace(config.data, wrap=True)
    teacher = dataclasses.replace(config.teacher, checkpoint=str(base), init_from="")
    distill = dataclasses.replace(config.distill, **distill)
    return dataclasses.replace(config, data=data, teacher=teacher, distill=distill)


def test_diffugpt_is_a_teacher_as_it_is_and_its_student_writes(tmp_path):
    base, named = put(tmp_path / "m", causal=False)
    config = taken(tmp_path, base, lora=LoraConfig(rank=2))
    student = run(config, tmp_path / "run")
    teacher = sdtt_jax.load(tmp_path / "run/teacher")
    assert (teacher.config.length, teacher.mask_id, teacher.tokenizer.eos_id) == (
        16,
        len(WORDS),
        END,
    )
    x_t = np.random.default_rng(0).integers(3, len(WORDS) + 1, (1, 16)).astype(np.int32)
    logits = teacher.logits(x_t)
    np.testing.assert_allclose(logits[0], plain_logits(named, x_t[0]), atol=1e-3)
    assert student.facts["round"] == 1
    assert np.abs(student.logits(x_t) - logits).max() > 1e-3
    assert student.sample(jax.random.key(0), 2, 3).shape == (2, 16)


def test_a_gpt2_becomes_a_denoiser_and_goes_out_as_a_diffugpt(tmp_path):
    base, named = put(tmp_path / "m", causal=True)
    config = run_config(adapting(tmp_path, base))
    student = run(config, tmp_path / "run")
    assert student.facts["kind"] == "gpt2-denoiser"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = [line["open_share"] for line in lines if line["stage"] == "teacher"]
    assert shares == pytest.approx([0.0, 0.5, 1.0, 1.0])
    rate = config.teacher.train.optimizer.learning_rate
    after = sdtt_jax.load(tmp_path / "run/teacher").params["positions"]["embedding"]
    assert 0 < np.abs(after - named["wpe.weight"][:16]).max() < 8 * rate
    export_reference(student, tmp_path / "out")
    again = sdtt_jax.load(tmp_path / "out")
    x_t = np.full((1, 16), student.mask_id, np.int32)
    x_t[0, :2] = student.tokenizer.encode("the fox")[:2]
    np.testing.assert_allclose(again.logits(x_t), student.logits(x_t), atol=1e-5)
    assert again.tokenizer.decode(again.tokenizer.encode("the fox")) == "the fox"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 32}, r"data\.length=32 exceeds the 20 positions of .*/m; reduce it"),
        (
            {"sequences": "padded", "wrap": False},
            r"data\.sequences='padded' confines .*/m cannot do; take .*'packed'",
        ),
    ],
)
def test_data_that_it_cannot_read_are_refused_before_they_are_prepared(tmp_path, fields, message):
    """The network said so when the teacher began, and advised one text in each sequence: `padded`."""
    base, _ = put(tmp_path / "m", causal=False)
    config = taken(tmp_path, base)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path / "run", ("data",))


def test_where_its_vocabulary_is_gpt2s_no_file_is_needed(tmp_path):
    sizes = {"vocab_size": 50_257, "n_positions": POSITIONS}
    base = repository(tmp_path / "m", tensors(50_258, POSITIONS), **sizes)
    with open_run(config_dict(taken(tmp_path, base)), tmp_path / "run") as opened:
        run_stages(opened, ("data",))
        assert opened.tokenizer.decode(opened.tokenizer.encode("the fox")) == "the fox"
        assert opened.denoiser.mask_id == opened.tokenizer.vocab_size == 50_257
