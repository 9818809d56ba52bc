"""Tiny models of text and images, one per model_type that wraps a text model, and a batch of text with an image in it.

Their vision towers see 8 x 8 pixels, which become 4 tokens.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minitron_cli.families import family_of, wrapper_of
from minitron_cli.spec.shape import shape_of
from minitron_cli.spec.wrapper import Prefixes, Wrapper
from tests.prune.cutting import sizes_in
from tests.toys import BASE, TOY_CONFIGS, randomise, toy_tokenizer

IMAGE = 90  # the id that stands for an image's tokens
_TOWER = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 2,
}
QWEN = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "patch_size": 2,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 16,
    "out_hidden_size": 48,
}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
QWEN2 = {**{key: value for key, value in TOY_CONFIGS["qwen2"].items() if key != "head_dim"}, **MROPE}
SIGLIP = {**_TOWER, "model_type": "siglip_vision_model"}
WRAPPED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TOY_CONFIGS["gemma3_text"], "model_type": "gemma3_text"},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "gemma4": {
        "text_config": {**TOY_CONFIGS["gemma4_text"], "model_type": "gemma4_text"},
        "vision_config": {
            **{key: value for key, value in _TOWER.items() if key != "image_size"},
            "model_type": "gemma4_vision",
            "hidden_size": 16,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
        "audio_config": None,
        "image_token_id": IMAGE,
        "boi_token_id": 91,
        "eoi_token_id": 92,
    },
    "mistral3": {
        "text_config": {**TOY_CONFIGS["ministral3"], "model_type": "ministral3"},
        "vision_config": {**_TOWER, "model_type": "pixtral", "head_dim": 8, "hidden_size": 16},
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
        "tie_word_embeddings": False,
    },
    "internvl": {
        "text_config": {**TOY_CONFIGS["qwen3"], "model_type": "qwen3"},
        "vision_config": {**_TOWER, "model_type": "internvl_vision"},
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
    },
    "llava": {
        "text_config": {**TOY_CONFIGS["llama"], "model_type": "llama"},
        "vision_config": {**_TOWER, "model_type": "clip_vision_model", "patch_size": 4, "projection_dim": 8},
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
        "multimodal_projector_bias": True,
    },
    **{
        model_type: {
            "text_config": {**TOY_CONFIGS["llama"], "model_type": "llama"},
            "vision_config": {**_TOWER, "model_type": tower},
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "tie_word_embeddings": False,
        }
        for model_type, tower in (("idefics3", "idefics3_vision"), ("smolvlm", "smolvlm_vision"))
    },
    "lfm2_vl": {
        "text_config": {**TOY_CONFIGS["lfm2"], "model_type": "lfm2"},
        "vision_config": {
            **{key: value for key, value in _TOWER.items() if key != "image_size"},
            "model_type": "siglip2_vision_model",
            "num_patches": 16,
            "vision_use_head": False,
        },
        "image_token_id": IMAGE,
        "downsample_factor": 2,
        "projector_hidden_size": 22,
    },
    "qwen3_5": {
        "text_config": {**TOY_CONFIGS["qwen3_5_text"], "model_type": "qwen3_5_text"},
        "vision_config": QWEN,
        **QWEN_IDS,
    },
    "qwen3_5_moe": {
        "text_config": {**TOY_CONFIGS["qwen3_5_moe_text"], "model_type": "qwen3_5_moe_text"},
        "vision_config": QWEN,
        **QWEN_IDS,
    },
    "qwen2_vl": {
        "text_config": {**QWEN2, "model_type": "qwen2_vl_text"},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "patch_size": 2},
        **QWEN_IDS,
    },
    # Windows of 4 x 4 pixels: the only layer sees the whole image.
    "qwen2_5_vl": {
        "text_config": {**QWEN2, "model_type": "qwen2_5_vl_text"},
        "vision_config": {
            **{key: value for key, value in QWEN.items() if key != "num_position_embeddings"},
            "fullatt_block_indexes": [0],
            "window_size": 4,
        },
        **QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": {
            **{key: value for key, value in TOY_CONFIGS["qwen3"].items() if key in BASE},
            "model_type": "qwen3_vl_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 1]},
        },
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0]},
        **QWEN_IDS,
    },
    "qwen3_vl_moe": {
        "text_config": {
            **TOY_CONFIGS["qwen3_moe"],
            "moe_intermediate_size": 32,  # 2 * 24 would be as many rows as there are columns
            "model_type": "qwen3_vl_moe_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 1]},
        },
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0]},
        **QWEN_IDS,
        "tie_word_embeddings": False,
    },
}


def text_type(model_type: str) -> str:
    """The model_type of a toy's text model, by itself."""
    own = str(WRAPPED[model_type]["text_config"]["model_type"])
    return _wrapper(model_type).text_types.get(own, own)


def sizes_for(model_type: str, cut: str) -> dict[str, int]:
    """Target sizes of a cut of a toy's text model inside the whole; empty where it has no such axis."""
    own = WRAPPED[model_type]["text_config"]
    family = _wrapper(model_type).around(family_of(text_type(model_type)))
    return sizes_in(family, shape_of(family, own), cut)


def _wrapper(model_type: str) -> Wrapper:
    found = wrapper_of(model_type)
    assert found is not None
    return found


def wrapped_model(model_type: str, seed: int = 0, **text: Any) -> Any:
    """A float32 model with every parameter randomised; `text` are values of its text_config."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = WRAPPED[model_type]
    config = {**config, "text_config": {**config["text_config"], **text}}
    if "tie_word_embeddings" in config["text_config"]:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"]
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config)).float().eval()
    randomise(model, seed)
    return model


def make_wrapped(model_type: str, path: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> Path:
    """Save a toy model of text and images with a toy tokenizer and a file of its processor; returns `path`."""
    wrapped_model(model_type, seed, **text).to(dtype).save_pretrained(path)
    if model_type == "qwen3_vl_moe":
        turn_experts(path)
    toy_tokenizer(TOY_CONFIGS["llama"]["vocab_size"]).save_pretrained(path)
    (path / "preprocessor_config.json").write_text('{"size": 8}\n')
    return path


def turn_experts(directory: Path) -> None:
    """Store experts as Qwen publishes them, each matrix transposed, in place."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    turned = {name: t.transpose(1, 2).contiguous() for name, t in tensors.items() if ".experts." in name}
    save_file(tensors | turned, file, {"format": "pt"})


def spelled(directory: Path, before: Prefixes, after: Prefixes) -> Path:
    """Rename the tensors of a directory from one way of spelling to another, in place."""
    file = directory / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        inside = before.inside(name)
        renamed[after.beside + name.removeprefix(before.beside) if inside is None else after.on_disk(inside)] = tensor
    save_file(renamed, file, {"format": "pt"})
    return directory


def load_whole(path: Path) -> Any:
    """The model of text and images as a user loads it, in float32; no weight may be missing or left over."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def image_batch(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two rows of 11 tokens, 4 of them an image's, and the pixels of two images."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, IMAGE, (2, 11), generator=generator)
    ids[:, 3:7] = IMAGE
    images = (ids == IMAGE).long()
    pixels = torch.randn(2, 3, 8, 8, generator=generator)
    if model_type.startswith("qwen"):
        patches = torch.randn(2 * 16, 3 * 2 * 2 * 2, generator=generator)  # of two frames each
        grid = torch.tensor([[1, 4, 4]] * 2)
        return {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": images}
    if model_type == "gemma4":
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1).repeat(2, 1, 1)
        patches = torch.rand(2, 16, 3 * 2 * 2, generator=generator)
        return {
            "input_ids": ids,
            "pixel_values": patches,
            "image_position_ids": places,
            "mm_token_type_ids": images,
        }
    if model_type == "lfm2_vl":
        patches, sizes = torch.randn(2, 16, 3 * 2 * 2, generator=generator), torch.tensor([[4, 4]] * 2)
        mask = torch.ones(2, 16, dtype=torch.long)
        return {"input_ids": ids, "pixel_values": patches, "spatial_shapes": sizes, "pixel_attention_mask": mask}
    if model_type in ("idefics3", "smolvlm"):  # several images a row
        return {"input_ids": ids, "pixel_values": pixels[:, None]}
    found = {"input_ids": ids, "pixel_values": pixels}
    more = {"gemma3": {"token_type_ids": images}, "mistral3": {"image_sizes": torch.tensor([[8, 8]] * 2)}}
    return found | more.get(model_type, {})


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory by its name on disk."""
    return {name: t for file in directory.glob("model*.safetensors") for name, t in load_file(file).items()}


class TextView(torch.nn.Module):
    """The text model inside a model of text and images, under the names that it has by itself; the same parameters.

    It runs as a part of the whole, on `images` too where they are set: what `image_batch` gives beside the ids.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.model = getattr(whole.model, "language_model", None) or whole.model.text_model
        self.lm_head = whole.lm_head
        self.images: dict[str, torch.Tensor] = {}
        self.whole = (whole,)  # not a module of this one: its parameters would have two names

    def forward(self, input_ids: torch.Tensor, **given: Any) -> Any:
        return self.whole[0](input_ids=input_ids, **self.images, **given)
