"""What a prune would do, from the config and the headers alone: sizes, parameters, bytes, memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.architecture import Architecture, beside_bytes, stored_weights
from minitron_cli.checkpoint.reader import PREDICTOR, Checkpoint
from minitron_cli.prune.compensation_cost import FLOPS_PER_SECOND, compensation_cost
from minitron_cli.prune.trim import PEAK_BYTES, dequantising_bytes
from minitron_cli.spec.axes import AXES, FLAG_OF_AXIS, Weight
from minitron_cli.spec.counts import bytes_text
from minitron_cli.spec.search import CLOSE
from minitron_cli.spec.shape import (
    Shape,
    copies,
    flops_per_token,
    kv_bytes_per_token,
    num_elements,
    num_parameters,
    state_bytes,
)
from minitron_cli.spec.wrapper import PROJECTOR

START_BYTES = 120 << 20  # the interpreter, and the one beside it that has transformers look at the config
VALUES_PER_SECOND = 1e8  # dequantised, on one core
BYTES_PER_SECOND = 1e9  # read and written together, on two cores that hash in hardware and a solid-state disk


@dataclass(frozen=True, slots=True)
class PruneFacts:
    """The results of a dry run; pairs are (source, target), sizes are bytes.

    `respelling` is what a cut vocabulary does to the counted text, by domain (see data/vocabulary/counts.Respelling),
    `servable` what engines make of the result (see spec/engines).
    """

    source: str
    model_type: tuple[str, str]
    shape: Mapping[str, tuple[int, int]]
    change: str
    parameters: tuple[int, int]
    non_embedding_parameters: tuple[int, int]
    bytes: tuple[int, int]
    kv_bytes_per_token: tuple[int, int]
    state_bytes: tuple[int, int]
    flops_per_token: tuple[int, int]
    peak_memory: int
    seconds: float
    compensation_flops: float
    warnings: tuple[str, ...]
    output: str
    respelling: Mapping[str, Mapping[str, float]] | None = None
    servable: Mapping[str, Any] | None = None


def prune_facts(
    source: Checkpoint | Architecture,
    target: Shape,
    output: Path,
    compensation: Mapping[str, bool] | None = None,
    budget: int | None = None,
    dense: bool = False,
) -> PruneFacts:
    """Source and target side by side, warnings, and what the streaming takes.

    With `compensation`, the options of `compensation_cost`, that is included; `budget` are the parameters asked for.
    With `dense` the target becomes a dense model, of the axes of the mixture still.
    """
    items, model_type = stored_weights(source), str(source.config["model_type"])
    becomes = source.family.dense if dense else None
    left = items if becomes is None else {weight: item for weight, item in items.items() if becomes.keeps(weight)}

    def pair(of: Callable[[Mapping[Weight, int], Shape], int]) -> tuple[int, int]:
        return of(items, source.shape), of(left, target)

    flops, held = compensation_cost(items, source.shape, target, **compensation) if compensation else (0.0, 0)
    axes = [a for a in source.shape if source.shape[a] != target[a] and a in FLAG_OF_AXIS]
    changed = [f"{FLAG_OF_AXIS[a]} {source.shape[a]} -> {target[a]}" for a in axes]
    changed += [f"{model_type} -> {becomes.model_type}"] if becomes else []
    num_bytes = pair(
        lambda lines, s: sum(num_elements(w, s) * copies(w, s) * n for w, n in lines.items()) + beside_bytes(source, s)
    )
    parameters = pair(num_parameters)
    held, seconds = held + PEAK_BYTES + START_BYTES, flops / FLOPS_PER_SECOND
    if isinstance(source, Checkpoint) and source.dequantised:
        changed.insert(0, "{method} -> {dtype}".format(**source.dequantised))
        num_bytes = (source.stored_bytes + beside_bytes(source, source.shape), num_bytes[1])
        held, seconds = held + dequantising_bytes(source), seconds + parameters[0] / VALUES_PER_SECOND
    return PruneFacts(
        source=str(source.path) if isinstance(source, Checkpoint) else source.family.name,
        model_type=(model_type, becomes.model_type if becomes else model_type),
        shape={axis: (source.shape[axis], target[axis]) for axis in source.shape},
        change=", ".join(changed),
        parameters=parameters,
        non_embedding_parameters=pair(lambda lines, s: num_parameters(lines, s, embedding=False)),
        bytes=num_bytes,
        kv_bytes_per_token=pair(lambda lines, s: kv_bytes_per_token(s)),
        state_bytes=pair(lambda lines, s: state_bytes(s)),
        flops_per_token=pair(lambda lines, s: flops_per_token(lines, s, 4096)),
        peak_memory=held,
        seconds=round(sum(num_bytes) / BYTES_PER_SECOND + seconds, 1),
        compensation_flops=flops,
        warnings=(*_warnings(source, target), *_miss(parameters[1], budget)),
        output=str(output),
    )


def _warnings(source: Checkpoint | Architecture, target: Shape) -> list[str]:
    found = [f"{FLAG_OF_AXIS[axis]}: {text}" for axis, text in source.family.warns.items()
             if axis in source.shape and source.shape[axis] != target[axis]]  # fmt: skip
    matches = source.matches.values() if isinstance(source, Checkpoint) else ()
    if further := sum(match.weight.kind == PREDICTOR for match in matches):
        found.append(
            f"{further} tensors that predict tokens beyond the next are left out: transformers has no use for them"
        )
    found += _beside(source, target)
    for axis in (a for a in AXES if a.multiple and a.name in source.shape):
        if target[axis.name] % axis.multiple and not source.shape[axis.name] % axis.multiple:
            found.append(f"--{axis.flag} {target[axis.name]} is not a multiple of {axis.multiple}; GPUs run it slower")
    return found


def _beside(source: Checkpoint | Architecture, target: Shape) -> list[str]:
    """Warnings about the tensors beside a text model."""
    if not isinstance(source, Checkpoint) or not source.beside:
        return []
    size = bytes_text(beside_bytes(source, source.shape))
    found = [
        f"{len(source.beside)} tensors beside the text model ({size}) are kept, and no parameter here counts them; "
        "--text-only leaves them out"
    ]
    early = source.wrapping.wrapper.early if source.wrapping is not None else ""
    if early and source.shape["layer"] != target["layer"]:
        found.append(
            f"image features enter again after each of the first layers ({early} has an entry for each): if the cut "
            "drops one of these, they enter after later layers than in training (choose others with --drop-layers)"
        )
    if gone := source.shape.get(PROJECTOR) - target.get(PROJECTOR):
        found.append(
            "the projector between vision and text has as many neurons inside as the text model has hidden channels: "
            f"{gone} of them go too, those with the smallest weights, and training on text does not make up for them"
        )
    return found


def _miss(parameters: int, budget: int | None) -> list[str]:
    if budget is None or abs(parameters / budget - 1) <= CLOSE:
        return []
    return [f"--params {budget:,}: the nearest shape has {parameters:,} parameters, {parameters / budget - 1:+.1%}"]
