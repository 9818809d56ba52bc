"""Quantised copies of toy checkpoints, by literal formulas, and the values that they stand for."""

import json
from collections.abc import Callable
from math import ceil, prod
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGEST = 448.0  # in E4M3
Tensors = dict[str, Tensor]
RAGGED = (20, 32)  # divides no side of a toy's matrices
OSS = {"hidden_size": 64, "intermediate_size": 96}  # multiples of 32


def fp8_block(weight: Tensor, tall: int, wide: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and values of (.., row, column), one block at a time: amax / 448."""
    lead, (height, width) = weight.shape[:-2], weight.shape[-2:]
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    values = torch.empty(weight.shape, dtype=torch.bfloat16)
    scales = torch.empty(*lead, ceil(height / tall), ceil(width / wide))
    flat = [t.view(prod(lead), *t.shape[-2:]) for t in (weight, codes, scales, values)]
    for one, code, scale, value in zip(*flat):
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide)
                scale[i, j] = one[part].float().abs().max() / LARGEST
                code[part] = (one[part].float() / scale[i, j]).to(torch.float8_e4m3fn)
                value[part] = (code[part].float() * scale[i, j]).to(torch.bfloat16)
    return codes, scales, values


def is_quantised(name: str) -> bool:
    """Projections of attention, MLP and experts; embeddings, head, norms and routers stay as they are."""
    return "_proj" in name and not name.endswith("bias")


def quantise_fp8(
    source: Path,
    place: Path,
    block: tuple[int, int] | None = (128, 128),
    scale: str = "_scale_inv",
    reshape: Callable[[Tensor], Tensor] = lambda scales: scales,
    settings: dict[str, Any] | None = None,
    each_row: bool = False,
) -> Path:
    """`place`/quantised and `place`/plain: a checkpoint in FP8, and its values in bfloat16. Returns `place`."""
    stored, plain = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not is_quantised(name) or tensor.ndim < 2:
            stored[name] = plain[name] = tensor.to(torch.bfloat16)
            continue
        tall, wide = block or tensor.shape[-2:]
        stored[name], scales, plain[name] = fp8_block(tensor, 1 if each_row else tall, wide)
        stored[name + scale] = reshape(scales)
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block) if block else None}
    return write_both(source, place, stored, plain, fp8 if settings is None else settings)


def write_both(source: Path, place: Path, stored: Tensors, plain: Tensors, settings: dict[str, Any]) -> Path:
    """Two copies of a toy with other weights, the first with a quantization_config."""
    for name, tensors, more in (("quantised", stored, {"quantization_config": settings}), ("plain", plain, {})):
        copytree(source, place / name)
        save_file(tensors, place / name / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        config.pop("torch_dtype", None)
        (place / name / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", **more}))
    return place


def quantise_mxfp4(source: Path, place: Path, seed: int = 0) -> Path:
    """A gpt-oss toy whose experts are random codes and scales; values are those of transformers' own conversion."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(seed)
    stored, plain = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = plain[name] = tensor.to(torch.bfloat16)
            continue
        experts, rows, columns = tensor.shape
        shape = (experts, columns, rows // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 125, shape, dtype=torch.uint8, generator=generator)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    return write_both(source, place, stored, plain, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


def compressed(strategy: str, block: tuple[int, int] | None = None) -> dict[str, object]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "block_structure": block}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


def _with_scales(place: Path, store: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor]) -> Path:
    """The scales of RAGGED blocks stored as `store` makes them, which `read` makes float32 again; values to match."""
    stored = load_file(place / "quantised" / "model.safetensors")
    plain = load_file(place / "plain" / "model.safetensors")
    for name in [name for name in stored if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        stored[name] = store(stored[name])
        height, width = stored[weight].shape
        scale = read(stored[name]).repeat_interleave(RAGGED[0], 0)[:height].repeat_interleave(RAGGED[1], 1)[:, :width]
        plain[weight] = (stored[weight].float() * scale).to(torch.bfloat16)
    save_file(stored, place / "quantised" / "model.safetensors", {"format": "pt"})
    save_file(plain, place / "plain" / "model.safetensors", {"format": "pt"})
    return place


def _exponents(scales: Tensor) -> Tensor:
    """Rounded up to powers of two, as F8_E8M0."""
    return (scales.log2().ceil() + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def _powers(exponents: Tensor) -> Tensor:
    return (exponents.view(torch.uint8).float() - 127).exp2()


def _fused(source: Path, output: Path) -> Path:
    """The toy with its experts as they are in memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    copytree(source, output)
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, output / "model.safetensors", {"format": "pt"}
    )
    return output


def _with_activations(place: Path) -> Path:
    """With the scales of a static quantisation of activations."""
    stored = load_file(place / "quantised" / "model.safetensors")
    names = [name.removesuffix("weight_scale_inv") for name in stored if name.endswith("weight_scale_inv")]
    stored |= {f"{name}activation_scale": torch.tensor(0.5) for name in names}
    save_file(stored, place / "quantised" / "model.safetensors", {"format": "pt"})
    return place


def _in_files(place: Path) -> Path:
    """Every scale in another file than its weight."""
    file = place / "quantised" / "model.safetensors"
    stored = load_file(file)
    file.unlink()
    parts = [{n: t for n, t in stored.items() if n.endswith("_scale_inv") == scales} for scales in (True, False)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for name, part in zip(names, parts):
        save_file(part, file.with_name(name), {"format": "pt"})
    weight_map = {n: name for name, part in zip(names, parts) for n in part}
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


QUANTISED: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "blocks": ("llama", lambda s, p: quantise_fp8(s, p, RAGGED)),
    "blocks larger than a matrix": ("qwen3", lambda s, p: quantise_fp8(s, p)),
    "one scale": ("llama", lambda s, p: quantise_fp8(s, p, None, reshape=lambda scale: scale.reshape(()))),
    "powers of two": ("qwen3", lambda s, p: _with_scales(quantise_fp8(s, p, RAGGED), _exponents, _powers)),
    "scales in bfloat16": (
        "llama", lambda s, p: _with_scales(quantise_fp8(s, p, RAGGED), Tensor.bfloat16, Tensor.float),
    ),
    "compressed by blocks": (
        "llama", lambda s, p: quantise_fp8(s, p, RAGGED, "_scale", settings=compressed("block", RAGGED)),
    ),
    "compressed by rows": (
        "qwen3", lambda s, p: quantise_fp8(s, p, None, "_scale", settings=compressed("channel"), each_row=True),
    ),
    "compressed whole": (
        "llama", lambda s, p: quantise_fp8(s, p, None, "_scale", lambda t: t.reshape(1), compressed("tensor")),
    ),
    "latent attention and experts": ("deepseek_v3", lambda s, p: quantise_fp8(s, p, RAGGED)),
    "experts": ("qwen3_moe", lambda s, p: quantise_fp8(s, p, RAGGED)),
    "fused experts": ("qwen3_moe", lambda s, p: quantise_fp8(_fused(s, p / "fused"), p, RAGGED)),
    "activation scales": ("qwen3", lambda s, p: _with_activations(quantise_fp8(s, p, RAGGED))),
    "several files": ("llama", lambda s, p: _in_files(quantise_fp8(s, p, RAGGED))),
    "mxfp4": ("gpt_oss", quantise_mxfp4),
}  # fmt: skip
