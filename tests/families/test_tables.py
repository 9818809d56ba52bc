"""The tables against witnesses: transformers' modules, names on disk, tensor-parallel plans, parameter counts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.families import FAMILIES, family_of, known_model_types
from minitron_cli.spec.axes import Weight, axes_of, size
from minitron_cli.spec.family import Family, match
from minitron_cli.spec.shape import computed, copies, num_parameters, shape_of
from tests.prune.cutting import CUTS, sizes_for
from tests.toys import TOY_CONFIGS, toy_config, toy_values

Toy = Callable[..., Path]
SPLIT_AXES = {
    "head",
    "kv",
    "global_head",
    "global_kv",
    "ffn",
    "shared_ffn",
    "expert_ffn",
}  # what tensor parallelism divides


def meta_model(config: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def on_disk(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, each once, and the buffers that are saved beside them."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in saved}


def test_every_model_type_has_a_toy_and_only_one_family() -> None:
    assert sorted(TOY_CONFIGS) == sorted(known_model_types())
    assert len({t for family in FAMILIES for t in family.model_types}) == sum(len(f.model_types) for f in FAMILIES)


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_names_and_shapes_in_memory(model_type: str) -> None:
    """Every parameter of a meta-device model is on the table with its shape, and every line is there."""
    family, values = family_of(model_type), toy_values(model_type)
    parameters = on_disk(meta_model(toy_config(model_type)))
    shape = shape_of(family, values)
    matches, unknown = match(family, parameters, shape.kinds)
    assert not unknown
    layout = next((m.weight.layout for m in matches.values() if m.weight.layout), None)
    expected = {w: copies(w, shape) for w in family.expected(values, layout)}
    for name, found in matches.items():
        assert tuple(parameters[name].shape) == tuple(size(d, shape.sizes) for d in found.weight.dims), name
        expected[found.weight] -= 1
    assert not {weight.name: left for weight, left in expected.items() if left}


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_names_on_disk(model_type: str, toy: Toy) -> None:
    """What save_pretrained writes is what the table says, in its usual layout: opening it checks both ways."""
    checkpoint = open_checkpoint(toy(model_type))
    used = {m.weight.layout for m in checkpoint.matches.values()} - {None}
    assert used <= {next(iter(checkpoint.family.layouts()), None)}


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
@pytest.mark.parametrize("cut", [None, *CUTS])
def test_parameters_counted_from_the_shape_alone(model_type: str, cut: str | None) -> None:
    """The count that needs no torch is the sum of numel of the model that transformers builds, before and after."""
    family, values = family_of(model_type), toy_values(model_type)
    shape = shape_of(family, values)
    target = shape.with_(**sizes_for(model_type, cut)) if cut else shape
    target = target.of_layers(range(target["layer"]), shape)
    keys = {axis: family.key(axis, values) for axis in family.config_keys if axis in target}
    overrides = {key: target[axis] for axis, key in keys.items() if key} | computed(family, target)
    for key in (*family.per_layer, "layers_block_type"):
        if values.get(key):
            overrides[key] = values[key][: target["layer"]]
    if overrides.get("moe_layer_end_index", values.get("moe_layer_end_index")):
        overrides["moe_layer_end_index"] = -1
    real = sum(p.numel() for p in on_disk(meta_model(toy_config(model_type, **overrides))).values())
    assert num_parameters(family.expected(values), target) == real


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_readers_and_writers_against_the_tensor_parallel_plan(model_type: str) -> None:
    """transformers says which linears split their outputs (colwise) and inputs (rowwise): the table must agree."""
    config, family = toy_config(model_type), family_of(model_type)
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan:
        pytest.skip(f"transformers has no tensor-parallel plan for {model_type}")
    checked = 0
    for pattern, style in plan.items():
        if style.startswith("embedding"):
            continue
        direction = 0 if "colwise" in style and "gather" not in style else -1 if "rowwise" in style else None
        for weight in _lines(family, pattern):
            if direction is not None and len(weight.dims) > 1:
                dim = weight.dims[direction] if len(weight.dims) == 2 else weight.dims[1:][direction]
                assert SPLIT_AXES & set(axes_of(dim)), f"{pattern} is {style}, the table says {weight}"
                checked += 1
    assert checked >= 2


def _lines(family: Family, pattern: str) -> list[Weight]:
    """The lines of a plan's entry: `layers.*.mlp.up_proj` is any line whose name holds it, * being a number."""
    wanted = re.escape(pattern).replace(r"\*", r"\{\w+\}")
    return [w for w in family.weights if re.search(rf"(^|\.){wanted}(\.weight)?$", w.name)]


def test_a_derived_family_replaces_the_line_of_the_same_name() -> None:
    family = FAMILIES[0]
    changed = family.with_("model.norm.weight hidden ?", name="other")
    assert [w.name for w in changed.weights] == [w.name for w in family.weights]
    assert next(w for w in changed.weights if w.name == "model.norm.weight").optional


LOOK_ALIKE = ("layers.00.mlp", "layers.-1.mlp", "layers.{layer}.mlp", "layers.1.1.mlp", "layers.1.mlp.0", "layers.mlp")


@pytest.mark.parametrize("middle", LOOK_ALIKE)
def test_names_that_only_look_alike_are_unknown(middle: str) -> None:
    name = f"model.{middle}.up_proj.weight"
    assert match(family_of("llama"), [name]) == ({}, [name])
