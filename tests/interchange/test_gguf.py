"""GGUF files, written with gguf's own writer. Oracle: tests/plain_llama.py on weights dequantised here."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.gguf import GgufTensors
from tests import plain_llama
from tests.experiments.processes import call
from tests.plain_llama import Plain

gguf = pytest.importorskip("gguf")

PLAIN = Plain(heads=4, kv_heads=2, head_dim=8, epsilon=1e-3, base=500.0, neighbours=True)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ i", "Ġi n"]
TOKENS = [
    *SPECIAL,
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *(m.replace(" ", "") for m in MERGES),
]
LAYERS, EMBED, MLP = 2, 32, 64
NAMES = {
    "norm1": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "norm2": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
QUANTISED = ("q", "k", "v", "o", "gate", "up", "down")


def weights(*, tied=True):
    return plain_llama.random_weights(
        3, PLAIN, layers=LAYERS, embed=EMBED, mlp=MLP, rows=len(TOKENS), tied=tied
    )


def tensors(weights):
    found = {"token_embd.weight": weights["embed"], "output_norm.weight": weights["final"]}
    if "head" in weights:
        found["output.weight"] = weights["head"]
    for i, layer in enumerate(weights["layers"]):
        found |= {f"blk.{i}.{NAMES[name]}.weight": array for name, array in layer.items()}
    return found


def write(path, weights, kind="F32", *, architecture="llama", change=None, more=(), less=()):
    """Writes a file in which the matrices of the blocks are quantised."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(EMBED)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(PLAIN.heads)
    writer.add_head_count_kv(PLAIN.kv_heads)
    writer.add_layer_norm_rms_eps(PLAIN.epsilon)
    writer.add_rope_freq_base(PLAIN.base)
    writer.add_rope_dimension_count(PLAIN.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if change is not None:
        change(writer)
    named = {name: x for name, x in tensors(weights).items() if name not in less} | dict(more)
    quantised = tuple(f"{NAMES[name]}.weight" for name in QUANTISED)
    for name, array in named.items():
        if name.endswith(quantised) and kind != "F32":
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, raw), raw_dtype=raw)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(array, kind):
    """By the formats' definitions: blocks of 32 numbers with a scale, in Q4_1 also an offset, as float16."""
    if kind in ("F32", "F16"):
        return array.astype(kind.replace("F", "float")).astype(np.float32)
    data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    if kind == "BF16":
        bits = data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(array.shape)
    heads = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4}[kind]
    size = heads + (32 if kind == "Q8_0" else 16)
    blocks = data.reshape(-1, size)
    scale, *offset = blocks[:, :heads].copy().view(np.float16).astype(np.float32).T
    if kind == "Q8_0":
        numbers = blocks[:, heads:].copy().view(np.int8).astype(np.float32)
    else:
        nibbles = blocks[:, heads:]
        numbers = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    if kind == "Q4_0":
        numbers -= 8
    values = scale[:, None] * numbers + (offset[0][:, None] if offset else 0)
    return values.reshape(array.shape)


IDS = np.random.default_rng(0).integers(0, len(TOKENS), (2, 7)).astype(np.int32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_logits_are_those_of_the_plain_twin(tmp_path, kind):
    plain = weights(tied=kind != "F32")
    model = sdtt_jax.load(write(tmp_path / "model.gguf", plain, kind))
    assert model.facts["kind"] == "llama"
    for layer in plain["layers"]:
        layer |= {name: dequantised(layer[name], kind) for name in QUANTISED}
    for row, ids in zip(model.logits(IDS), IDS, strict=True):
        np.testing.assert_allclose(row, plain_llama.logits(plain, PLAIN, ids), atol=1e-4)


def test_a_model_that_says_it_has_no_experts_is_read(tmp_path):
    path = write(tmp_path / "model.gguf", weights(), change=added("llama.expert_count", 0))
    assert sdtt_jax.load(path).facts["kind"] == "llama"


def test_a_denoisers_logits_are_those_of_the_plain_twin_without_the_causal_mask(tmp_path):
    """Its features used to be rotated in other pairs."""
    plain, mask = weights(), len(TOKENS) - 1
    path = write(tmp_path / "model.gguf", plain)
    model = sdtt_jax.load(path, causal=False, mask_id=mask, shift=False)
    twin = dataclasses.replace(PLAIN, causal=False)
    for row, ids in zip(model.logits(IDS), IDS, strict=True):
        np.testing.assert_allclose(row, plain_llama.logits(plain, twin, ids), atol=1e-4)


def super_block(raw, kind):
    """A block of 256 numbers of a K-quant by the definition of its format, number by number."""
    raw, values = raw.astype(int), np.zeros(256)

    def half(start):
        return float(raw[start : start + 2].astype(np.uint8).view(np.float16)[0])

    if kind == "Q6_K":
        scales = raw[192:208].astype(np.uint8).view(np.int8)
        for i in range(256):
            part, quarter, at = i // 128, i % 128 // 32, i % 32
            low = raw[64 * part + at + 32 * (quarter % 2)] >> (4 * (quarter // 2)) & 15
            high = raw[128 + 32 * part + at] >> (2 * quarter) & 3
            values[i] = half(208) * scales[i // 16] * (low + 16 * high - 32)
        return values
    if kind == "Q2_K":
        for i in range(256):
            number = raw[16 + 32 * (i // 128) + i % 32] >> (2 * (i % 128 // 32)) & 3
            scale = raw[i // 16]
            values[i] = half(80) * (scale & 15) * number - half(82) * (scale >> 4)
        return values
    if kind == "Q3_K":
        for i in range(256):
            low = raw[32 + 32 * (i // 128) + i % 32] >> (2 * (i % 128 // 32)) & 3
            high, group = raw[i % 32] >> (i // 32) & 1, i // 16
            scale = raw[96 + group % 8] >> (4 * (group // 8)) & 15
            scale += 16 * (raw[104 + group % 4] >> (2 * (group // 4)) & 3)
            values[i] = half(108) * (scale - 32) * (low + 4 * high - 4)
        return values
    packed, numbers = raw[4:16], raw[48 if kind == "Q5_K" else 16 :]
    for i in range(256):
        group, at = i // 32, i % 32
        if group < 4:
            scale, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        number = numbers[32 * (group // 2) + at] >> (4 * (group % 2)) & 15
        if kind == "Q5_K":
            number += 16 * (raw[16 + at] >> group & 1)
        values[i] = half(0) * scale * number - half(2) * offset
    return values


# Bytes of a block, and the offsets of its half-precision numbers.
K_QUANTS = {
    "Q2_K": (84, (80, 82)),
    "Q3_K": (110, (108,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
}


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_are_dequantised_by_their_definition(tmp_path, kind):
    size, halves = K_QUANTS[kind]
    raw = np.random.default_rng(5).integers(0, 256, (3, size), np.uint8)
    for start in halves:
        raw[:, start : start + 2] = (
            np.array([0.01, 1.5, 3.0], np.float16).view(np.uint8).reshape(3, 2)
        )
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = np.stack([super_block(block, kind) for block in raw])
    found = GgufTensors(tmp_path / "k.gguf")["x"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_saved_and_loaded_again_with_its_tokenizer(tmp_path):
    from sdtt_jax.interchange.export import export_orbax, export_reference

    template = "{{ messages[0].content }}"
    change = added("tokenizer.chat_template", template)
    model = sdtt_jax.load(write(tmp_path / "model.gguf", weights(), "Q8_0", change=change))
    export_orbax(model, tmp_path / "ours")
    again = sdtt_jax.load(tmp_path / "ours")
    assert again.config == model.config
    assert again.tokenizer.digest == model.tokenizer.digest
    np.testing.assert_array_equal(
        again.tokenizer.encode("in the 7"), model.tokenizer.encode("in the 7")
    )
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    (tmp_path / "generation_config.json").write_text("{}")  # another model's
    export_reference(model, tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").read_text() == template
    assert not (tmp_path / "theirs" / "generation_config.json").exists()
    theirs = sdtt_jax.load(tmp_path / "theirs")
    assert theirs.config.rotary_pairs == "halves"
    assert (
        theirs.tokenizer.encode("in the 7").tolist() == model.tokenizer.encode("in the 7").tolist()
    )
    np.testing.assert_allclose(theirs.logits(IDS), model.logits(IDS), atol=1e-5)


def added(name, value):
    """A change that overwrites or adds a field, or removes it if `value` is None."""

    def change(writer):
        for fields in writer.kv_data:
            fields.pop(name, None)
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY if kind is None else kind)

    return change


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tokenizer.ggml.tokens", [*TOKENS, "x", "y"], "its tokenizer cannot be read"),
        ("tokenizer.ggml.token_type", [1, 1], "its tokenizer cannot be read"),
        ("tokenizer.ggml.merges", ["a"], "its tokenizer cannot be read"),
        ("tokenizer.ggml.bos_token_id", None, r"lacks the field tokenizer\.ggml\.bos_token_id"),
        (
            "tokenizer.ggml.eos_token_id",
            500,
            "eos_id is token 500, but the model has only tokens 0",
        ),
        ("llama.block_count", 10**9, "holds 20 tensors, too few for the 1000000000 layers"),
        ("split.count", 3, "is one of the 3 parts of a model; put them together"),
        ("llama.embedding_length", 31, "embedding_length=31, but the tensors .* need 32"),
        ("llama.expert_count", 8, "expert_count=8, but the tensors .* need 0"),
    ],
)
def test_metadata_of_another_model_are_one_sentence(tmp_path, field, value, said):
    path = write(tmp_path / "model.gguf", weights(), change=added(field, value))
    with pytest.raises(CheckpointError, match=said) as caught:
        sdtt_jax.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_one_sentence(tmp_path, share):
    path = write(tmp_path / "model.gguf", weights())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        CheckpointError, match=r"model\.gguf, of [\d,]+ bytes, cannot be read as GGUF .*cut"
    ):
        sdtt_jax.load(path)


@pytest.mark.parametrize(
    ("size", "more", "said"),
    [
        (0, 1 << 16, ""),
        (0, 1 << 24, "counts a list of 16,777,4"),
        (1 << 27, 1 << 24, "counts a list of 16,777,4"),
    ],
)
def test_a_count_beyond_the_files_end_or_any_vocabulary_is_one_sentence(tmp_path, size, more, said):
    """It was read on and on, for hours, each number an array in memory. Oracle: the file's own count."""
    path = write(tmp_path / "model.gguf", weights())
    head = b"tokenizer.ggml.token_type" + b"".join(n.to_bytes(4, "little") for n in (9, 5))
    before, after = path.read_bytes().split(head)
    count = int.from_bytes(after[:8], "little")
    assert count == len(TOKENS)
    path.write_bytes(before + head + (count | more).to_bytes(8, "little") + after[8:])
    os.truncate(path, max(size, path.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"gguf, of .* {said}.* damaged"):
        sdtt_jax.load(path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma'; only 'llama' is read"),
        ({"less": ["blk.1.ffn_up.weight"]}, r"1 tensor is missing: blk\.1\.ffn_up\.weight"),
        (
            {"more": {"rope_factors_long.weight": np.ones(4, np.float32)}.items()},
            r"1 tensor is not part of this model: rope_factors_long\.weight",
        ),
        (
            {"more": {"blk.0.attn_k.weight": np.ones((16, 32), np.int8)}.items()},
            r"blk\.0\.attn_k\.weight is I8, which cannot be dequantised",
        ),
        (
            {"more": {"blk.0.attn_k.weight": np.ones((8, 32), np.float32)}.items()},
            r"blk\.0\.attn_k\.weight has shape \[8, 32\], but this model needs \[16, 32\]",
        ),
    ],
    ids=["architecture", "missing", "extra", "type", "shape"],
)
def test_what_is_no_such_network_is_named(tmp_path, how, said):
    path = write(tmp_path / "model.gguf", weights(), **how)
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(path)


def test_the_package_that_reads_them_is_named_where_it_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", weights())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="which the package gguf reads: pip install gguf"):
        sdtt_jax.load(path)


def test_a_file_is_cut_up_as_a_plain_array(tmp_path, monkeypatch):
    """Oracle: a count of the pieces of memory maps; each takes 4 times as long, and a token makes three."""
    path, pieces = write(tmp_path / "model.gguf", weights()), []
    finalize = np.memmap.__array_finalize__

    def counted(self, source):
        pieces.append(self)
        finalize(self, source)

    monkeypatch.setattr(np.memmap, "__array_finalize__", counted)
    sdtt_jax.load(path)
    assert len(pieces) < 10


def test_facts_are_plain(tmp_path):
    """They go into results and checkpoints as JSON."""
    assert json.dumps(sdtt_jax.load(write(tmp_path / "model.gguf", weights())).facts)


def test_the_command_says_what_it_is_and_reads_text_with_it(tmp_path):
    path, output = write(tmp_path / "model.gguf", weights()), tmp_path / "found.json"
    text = tmp_path / "text.txt"
    text.write_text("in the 7 then " * 40)
    done = call(
        "inspect",
        f"--checkpoint={path}",
        f"--held_out={text}",
        "--tokens=16",
        "--num_maskings=1",
        f"--output={output}",
    )
    assert done.status == 0, done.stderr
    found = json.loads(output.read_text())
    assert (found["layout"], found["kind"]) == ("gguf", "llama")
    assert found["recognised"] == "causal, with shift"
    assert len(found["losses"]) == 4
    assert "causal, with shift" in done.stdout
