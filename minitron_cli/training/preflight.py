"""The memory and disk that a run needs, forecast from the configs alone, before anything is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.reader import load_config
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.axes import Weight
from minitron_cli.spec.shape import Shape, flops_per_token, mlp_width, num_parameters, shape_of
from minitron_cli.training.chunks import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Size:
    """A model in figures: parameters, those `outside` its layers, forward FLOPs of one token at the run's length, and
    its shape."""

    parameters: int
    flops: float
    shape: Shape
    outside: int

    @property
    def layer(self) -> int:
        """Parameters of a layer, on average."""
        return -(-(self.parameters - self.outside) // self.shape["layer"])


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one device must hold when it holds most, by what they are for; `gathered` is what ranks hold of one
    another's weights for the layers at work."""

    weights: int
    optimizer: int
    gathered: int
    gradients: int
    teacher: int
    activations: int
    loss: int

    def total(self) -> int:
        return sum(asdict(self).values())


def size_of(model: Path, seq_len: int) -> Size:
    """Read a model directory's config; no tensor is touched."""
    return size_of_config(load_config(model), seq_len)


def size_of_config(config: Mapping[str, Any], seq_len: int) -> Size:
    """The figures of the model that a config.json dictionary describes."""
    family = family_of(str(config["model_type"]))
    # Not all lines: of two storage layouts a model has one.
    return size_of_shape(family.expected(config), shape_of(family, config), seq_len)


def size_of_shape(weights: Sequence[Weight], shape: Shape, seq_len: int) -> Size:
    """The figures of a model of this shape with the weights of these lines."""
    outside = num_parameters([w for w in weights if "layer" not in w.name_axes], shape)
    return Size(num_parameters(weights, shape), float(flops_per_token(weights, shape, seq_len)), shape, outside)


def training_flops(student: Size, teachers: Sequence[Size]) -> float:
    """FLOPs of training on a token: the student counts three times, as if no weight were frozen, each teacher once."""
    return 3 * student.flops + sum(teacher.flops for teacher in teachers)


def memory(
    student: Size, teachers: Sequence[Size], *, tokens: int, world: int, item: int, teacher_item: int,
    shard_teacher: bool, checkpointing: bool, accumulated: bool = True, device: str = "cuda",
    gradients: str = "whole", copies: int = 1, trained: int | None = None, graded: int = 0,
) -> Need:  # fmt: skip
    """Forecast a step on one of `world` devices: `tokens` in a micro-batch, `item` bytes per computed value.

    Master weights, gradients and AdamW's two moments are float32, in parts over world / `copies` devices; one device
    alone adds a low-precision copy. While micro-batches are `accumulated`, gradients are "whole" on every device until
    the last of them, or "sharded": reduced after each. Only the `trained` parameters, all unless given, have gradients
    and moments. Where tasks grade the student, each device holds it whole beside its part, `graded` bytes a value; the
    batches of tasks are cut to what is free then. The result is the largest of a step's moments: the teacher's run,
    the student's loss, the first layer of the backward pass, its last, and grading.
    """
    parts = world // copies
    share = -(-student.parameters // parts) * 4
    held = sum(-(-t.parameters // parts) if shard_teacher else t.parameters for t in teachers) * teacher_item
    spread = shard_teacher and parts > 1
    # A sharded model's layers are gathered one at a time, and the next one meanwhile; the rest for the whole step.
    at_work = (student.outside + 2 * student.layer) * item if parts > 1 else 0
    learning = student.parameters if trained is None else trained
    learning_share = -(-learning // parts) * 4
    before = 0 if not accumulated else 4 * learning if gradients == "whole" or parts == 1 else learning_share
    head = _head(student)
    saved, one_layer = _saved(student.shape, tokens, checkpointing, item)
    always = {
        "weights": share + (student.parameters * item if item < 4 and parts == 1 else 0),
        "optimizer": 2 * learning_share,
    }  # fmt: skip
    reduced = 0 if parts == 1 else (item + 4) * student.outside  # a group's gradient, and the copy that is reduced
    moments = [
        {
            "gathered": 0, "gradients": before, "loss": 0,
            "teacher": held + max((2 * t.layer + t.outside for t in teachers if spread), default=0) * teacher_item,
            "activations": max((_layer(t.shape, tokens, teacher_item) for t in teachers), default=0),
        },
        {
            "gathered": at_work, "gradients": before, "activations": saved,
            "teacher": held + sum(_head(t) for t in teachers if spread) * teacher_item,
            "loss": max(_chunks(student, tokens, device) + 4 * head, (4 + item) * head) + tokens * item * (
                student.shape["hidden"] + sum(t.shape["hidden"] for t in teachers)),
        },
        {
            "gathered": at_work, "activations": saved + one_layer, "teacher": held,
            "gradients": before + (0 if accumulated and parts == 1 else item * student.outside)
            + (2 * (item + 4) * student.layer if parts > 1 else 0),
            "loss": tokens * student.shape["hidden"] * item,
        },
        {
            "gathered": at_work, "activations": 0, "loss": 0, "teacher": held,
            "gradients": max(before, learning_share) + reduced,
        },
        {
            "gathered": student.parameters * graded, "gradients": 0, "activations": 0, "loss": 0, "teacher": held,
        },
    ]  # fmt: skip
    return max((Need(**always, **moment) for moment in moments), key=Need.total)


def _head(size: Size) -> int:
    return size.shape["vocab"] * size.shape["hidden"]


def _chunks(student: Size, tokens: int, device: str) -> int:
    """Bytes of the fused loss's chunks of logits."""
    return min(CHUNK_BYTES[device], 16 * tokens * student.shape["vocab"])


def _saved(shape: Shape, tokens: int, checkpointing: bool, item: int) -> tuple[int, int]:
    """Bytes kept for the backward pass, and what the layer at work adds there.

    With checkpointing a layer keeps its input alone, and is run again whole when its turn comes. After the layers
    comes one norm.
    """
    last = tokens * shape["hidden"] * _NORM[item] * item
    working = tokens * (3 * mlp_width(shape) + 2 * shape["hidden"]) * item
    if checkpointing:
        return shape["layer"] * tokens * shape["hidden"] * item + last, _layer(shape, tokens, item) + working
    return shape["layer"] * _layer(shape, tokens, item) + last, working


# Values that a norm keeps per channel, in units of the computing type: its input, the normed value, the result; and in
# half precision the input and the normed value are kept in float32 and rounded again.
_NORM = {4: 3, 2: 4}


def _layer(shape: Shape, tokens: int, item: int) -> int:
    """Bytes that one block keeps, counted on Llama's: two norms; q, k, v and the mix; gate, up, activation, product."""
    heads = shape.get("head")
    attention = 2 * (heads + shape.get("kv", heads)) * shape.get("head_dim", shape.get("qk_dim"))
    return tokens * item * (2 * _NORM[item] * shape["hidden"] + attention + 4 * mlp_width(shape))


def refuse(need: Need, available: int, where: str, remedies: Mapping[str, int]) -> None:
    """Refuse a step that cannot fit: names its largest parts, and the `remedies` with the bytes that they lead to."""
    parts = sorted(asdict(need).items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {value / 1e9:.1f} GB" for name, value in parts if value)
    would = "; ".join(f"{words} makes it {total / 1e9:.1f} GB" for words, total in remedies.items())
    raise MinitronError(
        f"a step needs about {need.total() / 1e9:.1f} GB and {where} has {available / 1e9:.1f} GB free ({listed})",
        f"{would or 'use more devices with --nproc, or --teacher-device cpu'}; --no-preflight tries anyway",
    )


def disk(student: Size, keep: int, export_item: int) -> int:
    """Bytes on disk at the most: `keep` checkpoints and one being written (weights, two moments), and the export."""
    return student.parameters * (12 * (keep + 1) + export_item)
