"""Tiny random checkpoints, one per model_type: sizes pairwise distinct, so that a swapped axis cannot hide.

`make_toy("llama", path)` saves one with transformers' own class; norm weights are randomised, because ones hide errors.
"""

from pathlib import Path
from typing import Any

import torch

from minitron_cli.families import family_of
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import Shape

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# Alternating attention, with a window short enough to matter in a toy's few tokens.
ALTERNATING = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}
SPARSE = {
    **{key: value for key, value in BASE.items() if key != "intermediate_size"},
    **EXPERTS,
    "moe_intermediate_size": 24,
}
DENSE_THEN_SPARSE = {
    **EXPERTS,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Linear attention, and attention in one layer; four value heads over two key heads.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 7,
    "linear_value_head_dim": 9,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
}
LATENT = {
    **{key: value for key, value in BASE.items() if key != "head_dim"},
    **DENSE_THEN_SPARSE,
    "num_key_value_heads": 6,
    "q_lora_rank": 14,
    "kv_lora_rank": 18,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 5,
}
DERIVED_HEAD_DIM = {key: value for key, value in BASE.items() if key != "head_dim"}
# Mamba-2 layers: 144 channels, three times the width and four times that which the battery cuts to.
MAMBA = {
    **DERIVED_HEAD_DIM,
    "mamba_n_heads": 16,
    "mamba_d_head": 9,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_d_conv": 4,
    "mamba_expand": 3,
    "mamba_chunk_size": 8,
}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

TOY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "mistral": {**BASE, "sliding_window": 5},
    "ministral": {**BASE, **ALTERNATING},
    "internlm3": BASE,
    "iquestcoder": BASE,
    # The fifth token and those after it are past the length before extension, so that their queries are scaled.
    "ministral3": {
        **BASE,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "seed_oss": {**BASE, "attention_out_bias": True},
    "hunyuan_v1_dense": BASE,
    "ernie4_5": {**BASE, "use_bias": True, "tie_word_embeddings": True},
    "arcee": {**BASE, "mlp_bias": True},
    "granite": {**BASE, "logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.7},
    "hyperclovax": {
        **BASE,
        "logits_scaling": 2.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
    "helium": {**BASE, "head_dim": 8, "attention_bias": True},  # hidden / heads, as its output matrix needs it
    "smollm3": {**BASE, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "qwen2": {**BASE, "tie_word_embeddings": True},
    "qwen3": {**BASE, **ALTERNATING, "use_sliding_window": True},
    "qwen3_moe": {**BASE, **EXPERTS, "num_experts": 5, "moe_intermediate_size": 24, "norm_topk_prob": False},
    "mellum": {
        **{**BASE, **EXPERTS, **ALTERNATING},
        "num_experts": 5,
        "moe_intermediate_size": 24,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "qwen2_moe": {
        **{**BASE, **EXPERTS},
        "num_experts": 5,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "norm_topk_prob": False,
    },
    "mixtral": {**BASE, **EXPERTS, "num_local_experts": 5, "intermediate_size": 24},
    # Half of each head is rotated: 12 / 2 leaves an even number.
    "nemotron": {**BASE, "head_dim": 12, "partial_rotary_factor": 0.5},
    "jais2": {**BASE, "head_dim": 8},
    "phi3": BASE,
    # As in Nemotron, half of each head is rotated.
    "glm": {**BASE, "head_dim": 12},
    "glm4": {**BASE, "head_dim": 12},
    "gemma": {**BASE, "tie_word_embeddings": True},
    "gemma2": {**BASE, **ALTERNATING, "tie_word_embeddings": True},
    "gemma3_text": {**BASE, **ALTERNATING, "tie_word_embeddings": True},
    # Layers of full attention have heads of another size; the last is of full attention.
    "gemma4_text": {
        **BASE,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 4,
        "global_head_dim": 16,
        "num_global_key_value_heads": 3,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "tie_word_embeddings": True,
    },
    "olmo2": BASE,
    "olmo3": {**BASE, **ALTERNATING},
    "olmoe": {**DERIVED_HEAD_DIM, **EXPERTS, "num_experts": 5, "intermediate_size": 24, "norm_topk_prob": True},
    "exaone4": {**BASE, **ALTERNATING},
    "cohere": {**DERIVED_HEAD_DIM, "use_qk_norm": True, "tie_word_embeddings": True},
    "cohere2": {**DERIVED_HEAD_DIM, **ALTERNATING, "tie_word_embeddings": True},
    "stablelm": {**DERIVED_HEAD_DIM, "use_qkv_bias": True},
    "starcoder2": {**BASE, "use_bias": True, "tie_word_embeddings": True, "sliding_window": 5},
    "gpt_oss": {**BASE, **EXPERTS, **ALTERNATING, "num_local_experts": 5, "intermediate_size": 24, **PLAIN_ROPE},
    # Short convolutions, and attention in one layer; hidden / heads is what its configs do not name.
    "lfm2": {
        **BASE,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": True,
    },
    "apertus": {**BASE, **PLAIN_ROPE},
    "granitemoe": {
        **DERIVED_HEAD_DIM,
        **EXPERTS,
        "num_local_experts": 5,
        "intermediate_size": 24,
        "logits_scaling": 2.0,
    },
    "granitemoehybrid": {
        **{**MAMBA, **EXPERTS},
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 5,
        "intermediate_size": 24,
        "shared_intermediate_size": 88,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {
        **{**MAMBA, "mamba_d_ssm": 144, "head_dim": 10},
        "mamba_rms_norm": True,
        "projectors_bias": True,
        "key_multiplier": 0.8,
        "attention_in_multiplier": 1.2,
        "ssm_in_multiplier": 0.9,
        "ssm_multipliers": [1.1, 0.9, 1.2, 0.8, 1.3],
        "lm_head_multiplier": 0.5,
    },
    # Each layer is one half of a block, of four kinds.
    "nemotron_h": {
        **{**BASE, **EXPERTS},
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp", "linear_attention"],
        "mamba_num_heads": 16,
        "mamba_head_dim": 9,
        "n_groups": 2,
        "ssm_state_size": 5,
        "chunk_size": 8,
        "n_routed_experts": 5,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 40,
    },
    "qwen3_5_text": {**BASE, **LINEAR},
    "qwen3_5_moe_text": {**SPARSE, **LINEAR, "num_experts": 5, "shared_expert_intermediate_size": 40},
    # Its first layer is dense, the second has attention: three kinds of layer.
    "qwen3_next": {
        **{**BASE, **SPARSE},
        **LINEAR,
        "num_experts": 5,
        "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [0],
    },
    "glm4_moe": {**BASE, **DENSE_THEN_SPARSE, "head_dim": 12, "use_qk_norm": True, "attention_bias": True},
    "solar_open": {
        **{key: value for key, value in {**BASE, **DENSE_THEN_SPARSE}.items() if key != "first_k_dense_replace"},
        "attention_bias": True,
    },
    "dots1": {**BASE, **DENSE_THEN_SPARSE},
    "ernie4_5_moe": {
        **DERIVED_HEAD_DIM,
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "tie_word_embeddings": True,
    },
    "deepseek_v2": {**LATENT, "q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "glm4_moe_lite": {**LATENT, "attention_bias": True},
    "gpt_neox": {key: value for key, value in DERIVED_HEAD_DIM.items() if key != "num_key_value_heads"},
}

# Mixtures of experts whose toys have experts in every layer, under `mlp`: what literal formulas of experts look into.
SPARSE_THROUGHOUT = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "gpt_oss")


SPARSE = tuple(name for name in TOY_CONFIGS if "expert" in family_of(name).axes())


def toy_config(model_type: str, **overrides: Any) -> Any:
    """The transformers config of a toy; families that derive head_dim from hidden / heads get none."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **{**TOY_CONFIGS[model_type], **overrides})


def toy_values(model_type: str) -> dict[str, Any]:
    """A toy's config.json as its family reads it."""
    values, normal = toy_config(model_type).to_dict(), family_of(model_type).normal
    return values if normal is None else normal(values)


def toy_model(model_type: str, seed: int = 0, **overrides: Any) -> Any:
    """A float32 model with every parameter randomised, norms and biases included."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(toy_config(model_type, **overrides)).float().eval()
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    """New parameters, norms and biases included."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 0:
                continue
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            else:
                # Much wider than the usual 0.02: a toy's blocks must matter as much as its residual stream.
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7 / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "layer_scalar")):
                buffer += 0.3 * torch.randn(buffer.shape, generator=generator)


def make_toy(model_type: str, path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Save a toy checkpoint with a toy tokenizer; returns `path`."""
    model = toy_model(model_type, seed, **overrides).to(dtype)
    model.save_pretrained(path)
    toy_tokenizer(TOY_CONFIGS[model_type]["vocab_size"]).save_pretrained(path)
    return path


def toy_tokenizer(vocab_size: int) -> Any:
    """A character-level tokenizer with <pad> 0, <s> 1, </s> 2, <unk> 3 and printable ASCII after them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(c) for c in range(32, 127)]
    vocab = {token: i for i, token in enumerate([*specials, *characters][:vocab_size])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def toy_ids(batch: int, length: int, vocab_size: int = 97, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, length), specials excluded."""
    return torch.randint(4, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def keep_all(shape: Shape) -> Plan:
    """The plan that changes nothing."""
    return Plan(shape, shape, {})
