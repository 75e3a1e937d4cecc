"""Tiny random models of the Llama family, in exactly the published layouts, for tests of loading.

Names, configs and conventions are those of the models' own repositories; tests/plain_llama.py computes the
numbers that they must reproduce.
"""

import dataclasses
import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from tests import plain_llama
from tests.plain_llama import Plain

LAYERS, EMBED, MLP, ROWS = 2, 16, 24, 20
MASK = 13
GROUPED = Plain(heads=4, kv_heads=2, head_dim=6, epsilon=1e-3, base=500.0)
HUB_NAMES = {
    "norm1": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "o": "self_attn.o_proj.weight",
    "norm2": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
OLMO_NAMES = {
    "norm1": "attn_norm.weight",
    "q": "q_proj.weight",
    "k": "k_proj.weight",
    "v": "v_proj.weight",
    "o": "attn_out.weight",
    "norm2": "ff_norm.weight",
    "gate": "ff_proj.weight",
    "up": "up_proj.weight",
    "down": "ff_out.weight",
}
HUB_CONFIG = {
    "hidden_size": EMBED,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-3,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "vocab_size": ROWS,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": [2, 1],
    "torch_dtype": "bfloat16",
}
QWEN = HUB_CONFIG | {"use_sliding_window": False, "sliding_window": 4096}
LLADA_CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": EMBED,
    "mlp_hidden_size": MLP,
    "n_layers": LAYERS,
    "n_heads": 4,
    "n_kv_heads": 4,
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-3,
    "rope": True,
    "rope_theta": 500.0,
    "alibi": False,
    "include_bias": False,
    "weight_tying": False,
    "multi_query_attention": None,
    "embedding_size": ROWS,
    "vocab_size": ROWS,
    "max_sequence_length": 4096,
    "mask_token_id": MASK,
    "eos_token_id": 2,
}


@dataclasses.dataclass(frozen=True)
class LlamaCase:
    """A published model."""

    config: dict  # config.json
    options: dict  # of the random weights
    shift: bool | None = None  # a denoiser's; None for a causal model
    given: dict = dataclasses.field(default_factory=dict)  # what the user has to say
    plain: dict = dataclasses.field(default_factory=dict)  # where the twin differs from `GROUPED`

    @property
    def causal(self):
        return self.shift is None


EVERY_HEAD = {"kv_heads": 4, "head_dim": 4}
LLAMA = {**HUB_CONFIG, "model_type": "llama", "attention_bias": False, "mlp_bias": False}
# Causal models as dLLM converts them: their config under another name, bidirectional attention, no shift.
A2D = {"mask_token_id": MASK}
MODELS = {
    "llama": LlamaCase(LLAMA, {}),
    "smollm2": LlamaCase({**HUB_CONFIG, "model_type": "llama"}, {"tied": True}),
    "qwen2": LlamaCase({**QWEN, "model_type": "qwen2"}, {"bias": True, "tied": True}),
    "qwen3": LlamaCase(
        {**QWEN, "model_type": "qwen3", "layer_types": ["full_attention"] * LAYERS},
        {"qk_norm": True, "tied": True},
    ),
    "mistral": LlamaCase(
        {**HUB_CONFIG, "model_type": "mistral", "sliding_window": 4096, "attention_dropout": 0.0},
        {},
    ),
    "seed_oss": LlamaCase(
        {**LLAMA, "model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False},
        {"bias": True},
    ),
    # They turn features 2 i and 2 i + 1 together.
    "ernie4_5": LlamaCase(
        {**HUB_CONFIG, "model_type": "ernie4_5", "use_bias": False},
        {"tied": True},
        plain={"neighbours": True},
    ),
    "helium": LlamaCase(
        {**LLAMA, "model_type": "helium"}, {"tied": True}, plain={"neighbours": True}
    ),
    "eurobert": LlamaCase({**LLAMA, **A2D, "model_type": "eurobert"}, {}, shift=False),
    "dream": LlamaCase(
        {**QWEN, "model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": MASK},
        {"bias": True},
        shift=True,
    ),
    "a2d-llama": LlamaCase({**LLAMA, **A2D, "model_type": "a2d-llama"}, {}, shift=False),
    "a2d-qwen2": LlamaCase(
        {**QWEN, **A2D, "model_type": "a2d-qwen2", "tie_word_embeddings": True},
        {"bias": True, "tied": True},
        shift=False,
    ),
    "a2d-qwen3": LlamaCase(
        {**QWEN, **A2D, "model_type": "a2d-qwen3", "tie_word_embeddings": True},
        {"qk_norm": True, "tied": True},
        shift=False,
    ),
    "llada": LlamaCase(LLADA_CONFIG, {}, shift=False, plain=EVERY_HEAD),
    # Its config is that of Llama 2 and does not say that it is a denoiser.
    "diffullama": LlamaCase(
        {
            **LLAMA,
            "architectures": ["LlamaForCausalLM"],
            "num_key_value_heads": 4,
            "head_dim": None,
            "pretraining_tp": 1,
            "tie_word_embeddings": False,
        },
        {},
        shift=True,
        given={"causal": False, "shift": True, "mask_id": MASK},
        plain=EVERY_HEAD,
    ),
}
IDS = np.random.default_rng(0).integers(0, ROWS, (2, 6)).astype(np.int32)


def model_of(name):
    """Config, conventions and weights of a tiny model."""
    case = MODELS[name]
    plain = Plain(**GROUPED.__dict__ | case.plain | {"causal": case.causal})
    sizes = {"layers": LAYERS, "embed": EMBED, "mlp": MLP, "rows": ROWS}
    return case.config, plain, plain_llama.random_weights(5, plain, **sizes, **case.options)


def tensors(name, weights):
    olmo = name == "llada"
    names = OLMO_NAMES if olmo else HUB_NAMES
    block = "model.transformer.blocks" if olmo else "model.layers"
    embed, final, head = (
        ("model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out")
        if olmo
        else ("model.embed_tokens", "model.norm", "lm_head")
    )
    found = {f"{embed}.weight": weights["embed"], f"{final}.weight": weights["final"]}
    if "head" in weights:
        found[f"{head}.weight"] = weights["head"]
    for i, layer in enumerate(weights["layers"]):
        found |= {f"{block}.{i}.{names[part]}": array for part, array in layer.items()}
    return found


def write(folder, config, named, *, shards=1):
    """Writes a repository: one file, or several with their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return folder
    where = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(named.items())[number::shards])
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def repository(folder, name, *, shards=1, **more):
    config, _, weights = model_of(name)
    return write(folder, config | more, tensors(name, weights), shards=shards)


def expected(name, ids):
    """Logits in the published numbering; if the model shifts, at the position of the predicted token."""
    _, plain, weights = model_of(name)
    logits = plain_llama.logits(weights, plain, ids)
    return np.concatenate([logits[:1], logits[:-1]]) if MODELS[name].shift else logits


def vocabulary(words):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<mask>"])
    return tokenizer
