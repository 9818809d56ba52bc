"""What a prune would do, from the config and the headers alone: sizes, parameters, bytes, memory."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.prune.fold_cost import FLOPS_PER_SECOND, fold_cost
from minitron_cli.prune.trim import PEAK_BYTES
from minitron_cli.spec.axes import AXES, FLAG_OF_AXIS
from minitron_cli.spec.shape import Shape, copies, flops_per_token, kv_bytes_per_token, num_elements
from minitron_cli.spec.shape import num_parameters as count

START_BYTES = 120 << 20  # the interpreter, and the one beside it that has transformers look at the config
BYTES_PER_SECOND = 1e9  # read and written together, on two cores that hash in hardware and a solid-state disk


def preflight(source: Checkpoint, target: Shape, fold: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """Source and target side by side as (source, target) pairs, warnings, and what the streaming takes.

    With `fold`, the options of `fold_cost`, that includes compensation.
    """
    weights = tuple({m.weight.name: m.weight for m in source.matches.values() if not m.weight.junk}.values())
    width = {m.weight.name: ITEM_BYTES[source.tensors[name].dtype] for name, m in source.matches.items()}

    def num_bytes(shape: Shape) -> int:
        return sum(num_elements(w, shape) * copies(w, shape) * width[w.name] for w in weights)

    pair = (source.shape, target)
    flops, held = fold_cost(weights, source.shape, target, **fold) if fold else (0.0, 0)
    changed = [a for a in source.shape if source.shape[a] != target[a]]
    return {
        "source": str(source.path),
        "shape": {axis: [s[axis] for s in pair] for axis in source.shape},
        "change": ", ".join(f"{FLAG_OF_AXIS[a]} {source.shape[a]} -> {target[a]}" for a in changed) or "nothing is cut",
        "parameters": [count(weights, s) for s in pair],
        "non_embedding_parameters": [count(weights, s, embedding=False) for s in pair],
        "bytes": [num_bytes(s) for s in pair],
        "kv_bytes_per_token": [kv_bytes_per_token(s) for s in pair],
        "flops_per_token": [flops_per_token(weights, s, 4096) for s in pair],
        "peak_memory": PEAK_BYTES + START_BYTES + held,
        "seconds": round((source.num_bytes + num_bytes(target)) / BYTES_PER_SECOND + flops / FLOPS_PER_SECOND, 1),
        "fold_flops": flops,
        "warnings": _warnings(source, target),
    }


def _warnings(source: Checkpoint, target: Shape) -> list[str]:
    found = [f"{FLAG_OF_AXIS[axis]}: {text}" for axis, text in source.family.warns.items()
             if axis in source.shape and source.shape[axis] != target[axis]]  # fmt: skip
    for axis in (a for a in AXES if a.multiple and a.name in source.shape):
        if target[axis.name] % axis.multiple and not source.shape[axis.name] % axis.multiple:
            found.append(f"--{axis.flag} {target[axis.name]} is not a multiple of {axis.multiple}; GPUs run it slower")
    return found
