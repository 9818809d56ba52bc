"""A quantised checkpoint as the plain model that it stands for: the tensors that this has, made of what is stored.

    fp8                  NAME (E4M3), NAME_scale_inv for blocks of 128 x 128 or for all of it (DeepSeek-V3, Qwen3 FP8)
    compressed-tensors   the same as NAME_scale, for blocks, rows or all of it; of its formats float-quantized alone
    mxfp4                NAME_blocks and NAME_scales (gpt-oss)

Tensors that are not quantised stay as they are. Scales of activations are left out.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.codes import EXPONENTS, GROUP, Packed, Scaled
from minitron_cli.checkpoint.headers import FLOATS, TensorInfo
from minitron_cli.errors import MinitronError

CONFIG = "quantization_config"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # of dequantised weights, as config.json names them
_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("activation_scale", "input_scale")
_FP8, _PACKED = ("F8_E4M3", "F8_E5M2"), "U8"
_WHOLE = (0, 0)  # 0 is the height or the width of the matrix
_STRATEGIES = {"tensor": _WHOLE, "channel": (1, 0)}  # of compressed-tensors, beside "block"

Block = tuple[int, int]


def method_of(config: Mapping[str, Any]) -> str | None:
    """What a checkpoint is quantised with, in words; None where it is not."""
    settings = config.get(CONFIG)
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        return str(settings)
    details = [settings.get(key) for key in ("format", "quant_algo")]
    details += ["fp4 experts"] * (settings.get("expert_dtype") == "fp4")
    words = ", ".join(str(detail) for detail in details if detail)
    return str(settings.get("quant_method", "an unnamed method")) + f" ({words})" * bool(words)


def plain_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config of the plain model, which names `dtype`."""
    left = {key: value for key, value in config.items() if key not in (CONFIG, "torch_dtype")}
    return {**left, "dtype": dtype}


def plain_tensors(
    stored: Mapping[str, TensorInfo], config: Mapping[str, Any], dtype: str, path: Path
) -> dict[str, TensorInfo]:
    """The tensors of the plain model by name; those that were quantised have the type `dtype` ("bfloat16").

    Raises MinitronError for a method that is not known here, and where scales are missing or do not fit.
    """
    blocks = require_known(config, path)
    found, problems = dict(stored), []
    for made in _packed(stored, DTYPES[dtype]) if blocks is None else _scaled(stored, blocks, DTYPES[dtype]):
        if isinstance(made, str):
            problems.append(made)
            continue
        plain, used = made
        for name in used:
            found.pop(name, None)
        found[plain.name] = plain
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise MinitronError(
            f"{path} cannot be dequantised: {'; '.join(problems[:4])}{more}",
            f"check that config.json ({CONFIG}) and the weights belong together and are complete",
        )
    return found


def require_known(config: Mapping[str, Any], path: Path) -> tuple[Block, ...] | None:
    """The blocks that a scale may be of; None for MXFP4. Refuses what is quantised in any other way."""
    settings = config[CONFIG] if isinstance(config[CONFIG], Mapping) else {}
    match settings.get("quant_method"):
        case "mxfp4":
            return None
        case "fp8" if settings.get("expert_dtype", "fp8") == "fp8":
            block = settings.get("weight_block_size", [128, 128])
            if block is None or _is_block(block):
                return (_WHOLE,) if block is None else ((block[0], block[1]),)
        case "compressed-tensors" if settings.get("format") == "float-quantized":
            if blocks := _of_groups(settings):
                return blocks
    raise MinitronError(
        f"{path} is quantised with {method_of(config)}, which is not dequantised here",
        "fp8, mxfp4 and compressed-tensors in the format float-quantized are; give the unquantised checkpoint",
    )


def _of_groups(settings: Mapping[str, Any]) -> tuple[Block, ...]:
    """The blocks of a compressed-tensors config; none where its weights are more than symmetric 8-bit floats."""
    groups, sparsity = settings.get("config_groups") or {}, settings.get("sparsity_config") or {}
    schemes = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, Mapping) else []
    plain = [s.get("type") == "float" and s.get("num_bits") == 8 and s.get("symmetric", True) for s in schemes]
    if not all(plain) or sparsity.get("format", "dense") != "dense" or settings.get("transform_config"):
        return ()
    found: list[Block] = []
    for scheme in schemes:
        block: Any = _STRATEGIES.get(str(scheme.get("strategy")), scheme.get("block_structure"))
        if not (isinstance(block, tuple) or _is_block(block)):
            return ()
        found.append((block[0], block[1]))
    return tuple(found)


def _is_block(block: Any) -> bool:
    """Whether this is a height and a width as JSON has them."""
    return isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)


def _scaled(
    stored: Mapping[str, TensorInfo], blocks: tuple[Block, ...], dtype: str
) -> Iterator[tuple[TensorInfo, list[str]] | str]:
    """Each FP8 tensor as its values and the names of what is left out with it, or what is wrong with it."""
    for name, info in stored.items():
        if info.dtype not in _FP8:
            continue
        scale = next((stored[name + end] for end in _SCALES if name + end in stored), None)
        if info.dtype != _FP8[0] or len(info.shape) < 2 or not prod(info.shape):
            yield f"{name} is {info.dtype} {list(info.shape)}, weights are {_FP8[0]} (.., row, column)"
        elif scale is None:
            yield f"{name} is stored as {info.dtype} and has no scale ({name}{_SCALES[0]})"
        elif scale.dtype not in (*FLOATS, *EXPONENTS):
            yield f"{scale.name} is stored as {scale.dtype}, which no scale is"
        else:
            matrix = (info.shape[-2], info.shape[-1])
            sizes = [(tall or matrix[0], wide or matrix[1]) for tall, wide in blocks]
            fitting = [block for block in sizes if scale.shape in _scale_shapes(info.shape, block)]
            if not fitting:
                wanted = " or ".join(str(list(_scale_shapes(info.shape, block)[0])) for block in sizes)
                yield f"{scale.name} has shape {list(scale.shape)}, {list(info.shape)} weights need {wanted}"
                continue
            codes = Scaled(scale, matrix, fitting[0])
            stem = name.removesuffix("weight") if name.endswith(".weight") else f"{name}_"
            left_out = [scale.name, *(stem + end for end in _ACTIVATIONS)]
            yield TensorInfo(name, dtype, info.shape, info.file, info.begin, codes), left_out


def _scale_shapes(shape: tuple[int, ...], block: Block) -> list[tuple[int, ...]]:
    """The shapes that the scales of a weight may have, the usual one first."""
    lead, (height, width) = shape[:-2], shape[-2:]
    grid = (-(-height // block[0]), -(-width // block[1]))
    shapes: list[tuple[int, ...]] = [(*lead, *grid)]
    if grid[1] == 1:
        shapes.append((*lead, grid[0]))
    if grid == (1, 1):
        shapes.append(lead)
    return shapes


def _packed(stored: Mapping[str, TensorInfo], dtype: str) -> Iterator[tuple[TensorInfo, list[str]] | str]:
    """Each MXFP4 tensor as its values and the names of what they are made of, or what is wrong with it."""
    for blocks in (info for name, info in stored.items() if name.endswith("_blocks")):
        name = blocks.name.removesuffix("_blocks")
        scales = stored.get(f"{name}_scales")
        if len(blocks.shape) != 4 or blocks.shape[-1] != GROUP // 2 or blocks.dtype != _PACKED:
            yield (
                f"{blocks.name} is {blocks.dtype} {list(blocks.shape)}, "
                f"MXFP4 is {_PACKED} (expert, column, row / {GROUP}, {GROUP // 2})"
            )
        elif scales is None:
            yield f"{blocks.name} has no scales ({name}_scales)"
        elif scales.dtype not in EXPONENTS or scales.shape != blocks.shape[:-1]:
            yield f"{scales.name} is {scales.dtype} {list(scales.shape)}, its blocks need {list(blocks.shape[:-1])}"
        else:
            experts, width, groups = scales.shape
            shape = (experts, groups * GROUP, width)
            codes = Packed(scales, shape[1:])
            assert codes.num_bytes(prod(shape)) == blocks.num_bytes
            yield TensorInfo(name, dtype, shape, blocks.file, blocks.begin, codes), [blocks.name, scales.name]
