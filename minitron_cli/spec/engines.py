"""What engines need of a model that they are to serve, by its sizes and its config alone.

Every rule was read in the sources of the release that `READ` names:

- Tensor parallelism (vLLM `QKVParallelLinear`, `ColumnParallelLinear`, `FusedMoEConfig`, `MambaMixer2`, `divide`;
  SGLang `layers/linear.py`, `fused_moe_triton/layer.py`): query heads, Mamba and linear-attention heads and the neurons
  of MLPs and experts are split evenly; key/value heads too, or copied whole where there are more GPUs than heads; a
  single group of Mamba heads is copied. The vocabulary is padded to a multiple of 64, experts need not divide.
- llama.cpp's types of 256 weights a block (K-quants; `tensor_type_fallback` of `llama-quant.cpp`) need rows of a
  multiple of 256, and become types of 32 a block where they are not, or float16 where not even that fits.
- mlx-lm (`utils.quantize_model`) does not quantise a matrix whose rows are not a multiple of the group, 64 by default.
- vLLM refuses FP8 weights in blocks of 128 x 128 where a GPU's part is not of whole blocks
  (`validate_fp8_block_shape`).

What an engine assumes about one architecture is in the table of its family (see `assumptions`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minitron_cli.spec.assumptions import Config
from minitron_cli.spec.axes import AXES, FLAG_OF_AXIS, Weight, axes_of, is_head, reading_dim, size
from minitron_cli.spec.family import Family
from minitron_cli.spec.pattern import Pattern, period_of
from minitron_cli.spec.shape import Shape, is_routed, num_elements

READ = {
    "vLLM": "0.33.0",
    "SGLang": "0.5.23",
    "llama.cpp": "0c1e57098",
    "MLX": "mlx-lm 0.32.0",
    "CTranslate2": "4.8.1",
}
DEGREES = (1, 2, 4, 8)
MULTIPLES = (64, 128, 256)
BLOCK = 256  # weights of a block of llama.cpp's K-quants


def servable(family: Family, config: Config, shape: Shape, pattern: Pattern | None = None) -> dict[str, Any]:
    """How engines can serve a model, as one JSON object; for a planned prune, `config` is that of its result.

    `pattern` is that of its layers (None: not known). `k_quants_apart` names the lengths of rows that llama.cpp's
    K-quants do not take.
    """
    spread = [axis for axis in AXES if axis.name in shape and axis.units and axis.spread]
    return {
        "tensor_parallel": [n for n in DEGREES if all(_divides(axis.spread, shape[axis.name], n) for axis in spread)],
        "divided_by": {axis.name: [n for n in DEGREES if shape[axis.name] % n == 0] for axis in spread},
        "multiples": {
            axis.name: [n for n in MULTIPLES if shape[axis.name] % n == 0]
            for axis in AXES
            if axis.name in shape and axis.multiple
        },
        "k_quants_apart": _odd_rows(family.expected(config), shape),
        "layers": None if pattern is None else _layers(pattern),
        "tied": not any(is_head(weight) for weight in family.expected(config)),
        "head_channels": {"stated": shape["head_dim"], "hidden_over_heads": shape["hidden"] / shape["head"]}
        if {"head", "head_dim"} <= set(shape)
        else None,
        "engines": breaches(family, config, shape),
    }


def breaches(family: Family, config: Config, shape: Shape) -> dict[str, list[str]]:
    """Engine -> what it assumes and this model breaks, in words; an empty list where nothing is broken."""
    found: dict[str, list[str]] = {engine: [] for engine in READ}
    for assumption in family.engines:
        if assumption.types and config.get("model_type") not in assumption.types:
            continue
        if text := assumption.breach(config, shape):
            for engine in assumption.engines:
                found[engine].append(text)
    return found


def _divides(spread: str, units: int, gpus: int) -> bool:
    """Whether so many GPUs can share the units (see `Axis.spread`)."""
    match spread:
        case "even":
            return units % gpus == 0
        case "copied":
            return units % gpus == 0 or gpus % units == 0
        case "single":
            return units % gpus == 0 or units == 1
    return True


def _odd_rows(weights: Iterable[Weight], shape: Shape) -> dict[str, int]:
    """The lengths of rows that matrices have and that are not a multiple of `BLOCK`, by their axes: {"ffn": 1000}."""
    found: dict[str, int] = {}
    for weight in weights:
        dim = reading_dim(weight)
        if dim is None or not num_elements(weight, shape) or (len(weight.dims) > 2 and not is_routed(weight)):
            continue  # convolutions are not quantised
        length = size(weight.dims[dim], shape.sizes)
        if (axes := axes_of(weight.dims[dim])) and length % BLOCK:
            found[" x ".join(axes)] = length
    return found


def _layers(pattern: Pattern) -> dict[str, Any]:
    period = period_of(pattern)
    return {
        "alike": len(set(pattern)) <= 1,
        "before_periods": period[0] if period else None,
        "period": period[1] if period else None,
    }


def lines(facts: Mapping[str, Any]) -> list[str]:
    """What `servable` found, in short sentences without a full stop."""
    most = {axis: max(of, default=0) for axis, of in facts["multiples"].items()}
    odd = [f"--{FLAG_OF_AXIS[axis]}" for axis, multiple in most.items() if not multiple]
    found = [
        f"tensor parallel over {', '.join(map(str, facts['tensor_parallel']))}",
        f"multiples of {min(filter(None, most.values()), default=1)}" + f" but for {', '.join(odd)}" * bool(odd),
    ]
    if facts["k_quants_apart"]:
        found.append(f"GGUF K-quants fall back in rows of {rows_text(facts['k_quants_apart'])}")
    if facts["layers"] is not None:
        found.append(layers_text(facts["layers"]))
    found.append("tied embeddings" if facts["tied"] else "an output head of its own")
    return [*found, *engine_lines(facts["engines"])]


def rows_text(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{length:,} ({axes})" for axes, length in rows.items())


def engine_lines(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about engines, each once with all the engines that it is true of."""
    engines: dict[str, list[str]] = {}
    for engine, texts in found.items():
        for text in texts:
            engines.setdefault(text, []).append(engine)
    return [f"{', '.join(names)}: {text}" for text, names in engines.items()]


def layers_text(found: Mapping[str, Any]) -> str:
    """The order of the layers in words."""
    if found["alike"]:
        return "layers alike"
    if found["period"] is None:
        return "layers of several sorts in no period"
    before = f" after the first {found['before_periods']}" if found["before_periods"] else ""
    return f"layers alike{before}" if found["period"] == 1 else f"layers in periods of {found['period']}{before}"
