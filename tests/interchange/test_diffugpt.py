"""DiffuGPT, in its names. Oracle: a bidirectional GPT-2 in NumPy on the file's tensors, shifted by one."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import sdtt_jax
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.export import export_orbax, export_reference
from sdtt_jax.interchange.safetensors import Tensors

LAYERS, EMBED, HEADS, LENGTH, ROWS = 2, 12, 3, 8, 14
CONFIG = {
    "model_type": "gpt2",
    "n_embd": EMBED,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": LENGTH,
    # As published: the tokenizer's size, without MASK.
    "vocab_size": ROWS - 1,
}
MASK = ROWS - 1
IDS = np.random.default_rng(0).integers(0, ROWS, (2, 6)).astype(np.int32)


def tensors(rows=ROWS, length=LENGTH):
    rng = np.random.default_rng(1)

    def numbers(*shape):
        return (0.4 * rng.standard_normal(shape)).astype(np.float32)

    found = {"embed_tokens.weight": numbers(rows, EMBED)}
    start = "denoise_model."
    found[f"{start}wpe.weight"] = numbers(length, EMBED)
    sizes = {"attn.c_attn": 3 * EMBED, "attn.c_proj": EMBED, "mlp.c_fc": 4 * EMBED}
    sizes["mlp.c_proj"] = EMBED
    for layer in range(LAYERS):
        block = f"{start}h.{layer}."
        for name, out in sizes.items():
            into = 4 * EMBED if name == "mlp.c_proj" else EMBED
            found |= {
                f"{block}{name}.weight": numbers(into, out),
                f"{block}{name}.bias": numbers(out),
            }
        for norm in ("ln_1", "ln_2"):
            found[f"{block}{norm}.weight"] = 1 + numbers(EMBED)
            found[f"{block}{norm}.bias"] = numbers(EMBED)
        found[f"{block}attn.bias"] = np.ones((1, 1, length, length), np.bool_)
    found |= {f"{start}ln_f.weight": 1 + numbers(EMBED), f"{start}ln_f.bias": numbers(EMBED)}
    return found


def repository(folder, named, **more):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | more))
    save_file(named, folder / "model.safetensors")
    return folder


def plain_logits(named, ids):
    """`[length]` → `[length, rows]`, each at the token that it predicts; float64, one head at a time."""
    at = {name.removeprefix("denoise_model."): x.astype(np.float64) for name, x in named.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * at[f"{name}.weight"] + at[f"{name}.bias"]

    def linear(x, name):
        return x @ at[f"{name}.weight"] + at[f"{name}.bias"]

    x, size = at["embed_tokens.weight"][ids] + at["wpe.weight"][: len(ids)], EMBED // HEADS
    for layer in range(LAYERS):
        block = f"h.{layer}."
        query, key, value = np.split(linear(norm(x, f"{block}ln_1"), f"{block}attn.c_attn"), 3, -1)
        mixed = np.zeros_like(query)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            mixed[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
        x = x + linear(mixed, f"{block}attn.c_proj")
        y = linear(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{block}mlp.c_proj")
    logits = norm(x, "ln_f") @ at["embed_tokens.weight"].T
    return np.concatenate([logits[:1], logits[:-1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sdtt_jax.load(repository(tmp_path_factory.mktemp("diffugpt") / "m", tensors()))


def test_logits_are_those_of_the_plain_twin(model):
    assert model.facts["kind"] == "gpt2-denoiser"
    assert model.mask_id == MASK
    for row, ids in zip(model.logits(IDS), IDS, strict=True):
        np.testing.assert_allclose(row, plain_logits(tensors(), ids), atol=1e-4)


def test_attention_opens_from_that_of_the_causal_model(model):
    """Oracle: a change of a later token reaches an earlier position only if the edge between them is open."""
    later = IDS.copy()
    later[:, 4] = (later[:, 4] + 1) % ROWS
    closed = np.zeros((2, 6, 6), bool)
    one = closed.copy()
    one[:, 2, 4] = True
    for edges, unmoved in ((closed, 5), (one, 3), (~closed, 0)):
        before, after = (model.denoiser.hidden(model.params, x, edges=edges) for x in (IDS, later))
        # The state at position 2 predicts token 3; the first token has no state before it.
        same = np.isclose(before, after, atol=1e-6).all((0, 2))
        assert same.tolist() == [i < unmoved for i in range(6)] if unmoved else not same.any()
    np.testing.assert_allclose(
        model.denoiser.hidden(model.params, IDS, edges=~closed),
        model.denoiser.hidden(model.params, IDS),
        atol=1e-5,
    )


def test_it_writes_and_scores_up_to_its_positions(model):
    texts = model.sample(jax.random.key(0), 2, 3)
    assert texts.shape == (2, LENGTH)
    assert texts.max() < MASK
    assert np.isfinite(model.score(texts, jax.random.key(1), 2)).all()
    with pytest.raises(ConfigError, match=r"the texts have 9 positions, but .* has 8"):
        model.logits(np.zeros((1, 9), np.int32))


def test_it_goes_out_bit_for_bit(model, tmp_path):
    export_reference(model, tmp_path / "out")
    written, before = Tensors(tmp_path / "out" / "model.safetensors"), tensors()
    assert set(written) == {name for name in before if not name.endswith(".attn.bias")}
    for name in written:
        assert written[name].tobytes() == before[name].tobytes(), name
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        export_orbax(model, tmp_path / "orbax")


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path):
    other = tensors() | {"lm_head.weight": tensors()["embed_tokens.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        sdtt_jax.load(repository(tmp_path / "m", other))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_embd": 0}, "n_embd=0, a positive number"),
        ({"vocab_size": 50257}, r"vocab_size=50257, but embed_tokens\.weight .* has 14 rows"),
        ({"n_layer": 10**9}, "tensors, too few for the 1000000"),
    ],
    ids=str,
)
def test_a_config_of_another_is_refused_by_field(tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(repository(tmp_path / "m", tensors(), **change))


def test_an_embedding_that_is_no_table_is_named(tmp_path):
    named = tensors() | {"embed_tokens.weight": np.ones((), np.float32)}
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has shape \[\]"):
        sdtt_jax.load(repository(tmp_path / "m", named))
