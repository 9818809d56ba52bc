"""What a run will need, from the configs alone: said at the start, and refused before an hour is lost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.reader import load_config
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.spec.shape import Shape, flops_per_token, num_parameters, shape_of

# Bytes that the fused loss takes for its chunks of logits at the most (see fused.chunk_size).
LOSS_CHUNK = {"cpu": 128 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, slots=True)
class Size:
    """A model in figures: parameters, forward FLOPs of one token at the run's length, and its shape."""

    parameters: int
    flops: float
    shape: Shape


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one device must hold during a step, by what they are for."""

    weights: int
    optimizer: int
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
    shape = shape_of(family, config)
    weights = family.expected(config)  # not all lines: of two storage layouts a model has one
    return Size(num_parameters(weights, shape), float(flops_per_token(weights, shape, seq_len)), shape)


def memory(
    student: Size, teachers: list[Size], *, tokens: int, world: int, item: int, teacher_item: int, shard_teacher: bool,
    checkpointing: bool, accumulated: bool = True, device: str = "cuda",
) -> Need:  # fmt: skip
    """Estimate a step on one of `world` devices: `tokens` in a micro-batch, `item` bytes per computed value.

    Master weights, gradients and AdamW's two moments are float32 and sharded; a low-precision copy comes on top. While
    micro-batches are `accumulated`, every device holds the whole gradient: it is only reduced after the last of them.
    When the student's run begins, nothing of the teacher's is left but its last states.
    """
    copy = student.parameters * item if item < 4 and world == 1 else 0
    share = -(-student.parameters // world) * 4
    held = sum(t.parameters for t in teachers) * teacher_item
    taught = max((_activations(t.shape, 1, tokens) * teacher_item for t in teachers), default=0)
    vocab, hidden = student.shape["vocab"], student.shape["hidden"]
    return Need(
        weights=share + copy,
        optimizer=2 * share,
        gradients=4 * student.parameters if accumulated else share,
        teacher=held // world if shard_teacher else held,
        activations=max(_saved(student.shape, tokens, checkpointing) * item, taught),
        loss=min(LOSS_CHUNK[device], 16 * tokens * vocab) + 4 * vocab * hidden + tokens * hidden * item,
    )


def _saved(shape: Shape, tokens: int, checkpointing: bool) -> int:
    """Values kept for the backward pass; with checkpointing one per layer and channel, and one layer in full."""
    if checkpointing:
        return shape["layer"] * tokens * shape["hidden"] + _activations(shape, 1, tokens)
    return _activations(shape, shape["layer"], tokens)


def _activations(shape: Shape, layers: int, tokens: int) -> int:
    """Values that `layers` blocks keep, counted on Llama's: 1.2 times what was measured on a CPU, rather too much.

    Per token two norms with their float32 input, the normed values and the result (8 hidden); q, k, v and the mix;
    gate, up, the activation and the product (4 ffn).
    """
    width = shape.get("ffn") or shape.get("expert_ffn") * shape.get("expert_active", 1)
    attention = 2 * (shape["head"] + shape.get("kv", shape["head"])) * shape["head_dim"]
    return layers * tokens * (8 * shape["hidden"] + attention + 4 * width)


def check_memory(need: Need, available: int, where: str) -> None:
    """Refuse a step that cannot fit, naming the largest parts and what makes each smaller."""
    if need.total() <= available:
        return
    parts = sorted(asdict(need).items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {value / 1e9:.1f} GB" for name, value in parts if value)
    raise MinitronError(
        f"a step needs about {need.total() / 1e9:.1f} GB and {where} has {available / 1e9:.1f} GB free ({listed})",
        "lower --micro-batch, add --checkpoint-activations, give --teacher-dtype bfloat16 or --teacher-device cpu, or "
        "use more devices with --nproc; --no-preflight tries anyway",
    )


def disk(student: Size, keep: int, export_item: int) -> int:
    """Bytes on disk at the most: `keep` checkpoints and one being written (weights, two moments), and the export."""
    return student.parameters * (12 * (keep + 1) + export_item)
