"""What every matrix of a model reads, by its name in memory and its expert, taken by hooks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from minitron_cli.families import family_of
from minitron_cli.spec.axes import is_embedding, positions, reading_dim
from minitron_cli.spec.family import match
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.shape import is_routed
from tests.prune.cutting import load

Inputs = dict[tuple[str, int | None], Tensor]


def fuse_experts(source: Path, output: Path) -> Path:
    """The checkpoint with its tensors as they are named and stacked in memory."""
    model = load(source)
    model.config.save_pretrained(output)
    names = dict(model.named_parameters())
    save_file({n: t.contiguous() for n, t in model.state_dict().items() if n in names}, output / "model.safetensors")
    return output


def inputs_of(model: Any, rows: np.ndarray) -> Inputs:
    """Inputs (token, channel) float64 of every linear layer, and of every expert's two matrices."""
    found: Inputs = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 2:
            handles.append(module.register_forward_pre_hook(_linear(found, f"{name}.weight")))
        elif name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(_experts(found, name)))
    with torch.no_grad():
        model(torch.from_numpy(rows), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _linear(found: Inputs, name: str) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...]) -> None:
        found[name, None] = args[0].reshape(-1, args[0].shape[-1]).double()

    return hook


def _experts(found: Inputs, name: str) -> Any:
    def hook(module: Any, args: tuple[Tensor, ...]) -> None:
        x, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
        first = "gate_up_proj" if module.has_gate else "up_proj"
        for expert, weight in enumerate(getattr(module, first)):
            own = x[(chosen == expert).any(-1)]
            up = own @ (weight if module.is_transposed else weight.T)
            up = up + module.gate_up_proj_bias[expert] if module.has_bias else up
            found[f"{name}.{first}", expert] = x.double()
            inner = module._apply_gate(up) if module.has_gate else module.act_fn(up)
            found[f"{name}.down_proj", expert] = inner.double()

    return hook


def matrices(model: Any, cut: Any, plan: Plan) -> Iterator[tuple[tuple[str, int | None], Any, Tensor, Tensor]]:
    """Every matrix whose inputs are cut: its key in `inputs_of`, positions kept, the source's and the cut's (out, in).

    Of the source's outputs those that stay.
    """
    old, new = model.state_dict(), cut.state_dict()
    tied = model.config.tie_word_embeddings
    for name, one in match(family_of(model.config.model_type), old, plan.source.kinds)[0].items():
        dim, layer = reading_dim(one.weight), None if one.layer is None else plan.target_layer(one.layer)
        gone = one.layer is not None and layer is None
        if dim is None or gone or is_embedding(one.weight) or (tied and one.layer is None):
            continue
        after = name if one.layer is None else one.weight.format(layer=layer)
        stacked = len(one.weight.dims) > 2 and is_routed(one.weight)
        for place in range(plan.target["expert"]) if stacked else [None]:
            expert = None if place is None else plan.source_expert(layer, place)
            kept = [positions(d, plan.source.sizes, plan.resolve(layer, place)) for d in one.weight.dims[-2:]]
            before, result = (old[name], new[after]) if place is None else (old[name][expert], new[after][place])
            reading = dim - len(one.weight.dims)
            if reading == -2:
                before, result, kept = before.T, result.T, kept[::-1]
            if kept[1] is not None:
                rows = slice(None) if kept[0] is None else kept[0]
                yield (name, expert), kept[1], before[rows].double(), result.double()
