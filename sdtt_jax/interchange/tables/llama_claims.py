"""What the config of a network of the Llama family may say besides its sizes.

The tensors of many relatives have the same names; only these fields tell that they compute something else.
"""

from sdtt_jax.interchange.claims import PLAIN_LOGITS, ROTATES, Allowed

# Values that other fields of its config may have (null counts as absent); see `check_claims`.
LLAMA_CLAIMS: Allowed = {
    # Two names of one function.
    **dict.fromkeys(("hidden_act", "activation_type"), ("silu", "swish")),
    **dict.fromkeys(("hidden_activation", "activation_function"), ("silu", "swish")),
    **dict.fromkeys(("mlp_bias", "include_bias", "use_sliding_window"), (False,)),
    **dict.fromkeys(("scale_logits", "input_emb_norm"), (False,)),
    "clip_qkv": (),
    # Factors of Granite, MiniCPM and Gemma; in SmolLM3 and Llama 4, the layers that rotate.
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1,)),
    **dict.fromkeys(("scale_emb", "embed_scale", "lm_head_multiplier", "rope_ratio"), (1,)),
    "no_rope_layers": (1,),
    **dict.fromkeys(("attn_temperature_tuning", "layer_sharing", "norm_after"), (False,)),
    **dict.fromkeys(("scale_depth", "dim_model_base", "query_pre_attn_scalar"), ()),
    **PLAIN_LOGITS,
    **ROTATES,
    **dict.fromkeys(("alibi", "attention_layer_norm", "multi_query_attention"), (False,)),
    **dict.fromkeys(("layer_norm_type", "norm_type"), ("rms", "rmsnorm", "rms_norm")),
    # Attention in parallel with the MLP, neighbours rotated together, Qwen's positions in images.
    **dict.fromkeys(("parallel_attn", "parallel_residual", "use_parallel_residual"), (False,)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "rope_traditional"), (False,)),
    "use_mrope": (False,),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 1)),
    "block_type": ("llama",),
    "layer_types": ("full_attention",),
    **dict.fromkeys(("quantization_config", "expert_count"), ()),
}
