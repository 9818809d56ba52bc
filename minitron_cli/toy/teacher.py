"""The shape of the toy world's teacher: a Llama with grouped queries whose sizes are pairwise distinct."""

import json
from pathlib import Path

CONTEXT = 128
# Trainable in two minutes on two cores. Weights start at about 1 / sqrt(hidden), not at 0.02: at this width the
# usual scale delays everything that needs attention by hundreds of steps.
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "initializer_range": 0.08,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "dtype": "float32",
    "max_position_embeddings": CONTEXT,
}


def write_config(directory: Path, vocab_size: int, ids: dict[str, int | None]) -> None:
    """Write config.json for a model without weights; `ids` holds pad, bos and eos."""
    config = {**_CONFIG, "vocab_size": vocab_size, **{f"{name}_token_id": index for name, index in ids.items()}}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
