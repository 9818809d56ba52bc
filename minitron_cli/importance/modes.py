"""How a pass is run: the whole model resident, or layer by layer; decided by what memory there is."""

from dataclasses import dataclass

import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.memory import free_host_memory, free_memory
from minitron_cli.spec.shape import num_elements

BATCH_TOKENS = {"cuda": 16384, "cpu": 4096}


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that each part of the work takes on the device, in the dtype of the computation."""

    model: int  # every weight
    block: int  # the largest layer, or the embedding with the first one
    batch: int  # activations of one batch
    states: int  # hidden states of all samples, for streaming


@dataclass(frozen=True, slots=True)
class Mode:
    """The way chosen, and why. `on_disk`: streamed hidden states are mapped from files, not held."""

    name: str
    on_disk: bool
    memory: int  # bytes on the device, estimated
    reason: str


def needs(checkpoint: Checkpoint, batch_tokens: int, tokens: int, item_bytes: int) -> Needs:
    """Estimate the bytes of the parts; `tokens` are those of all samples of this process."""
    shape, layers, outside = checkpoint.shape, [0] * checkpoint.shape["layer"], 0
    for match in checkpoint.matches.values():
        if not match.weight.junk:
            elements = num_elements(match.weight, shape)
            if match.layer is not None:
                layers[match.layer] += elements
            else:
                outside += elements
    wide = max(shape.get("ffn"), shape.get("expert_ffn") * shape.get("expert_active", 1), shape.get("shared_ffn"))
    per_token = 8 * shape["hidden"] + 4 * wide + 4 * shape.get("head", 0) * shape.get("head_dim", 0)
    embedding = shape["vocab"] * shape["hidden"]
    return Needs(
        model=(sum(layers) + outside) * item_bytes,
        block=max(max(layers), layers[0] + embedding) * item_bytes,
        batch=batch_tokens * per_token * item_bytes,
        states=tokens * shape["hidden"] * item_bytes,
    )


def choose(wanted: str, need: Needs, device: torch.device, limit: int | None = None) -> Mode:
    """The resident model where it fits, else streaming; its states go to disk where they would fill half of memory."""
    memory = limit or free_memory(device)
    host = min(limit or free_host_memory(), free_host_memory())
    resident, on_disk = need.model + need.batch, need.states > host // 2
    streamed = 2 * need.block + need.batch + (0 if on_disk or device.type == "cuda" else need.states)
    if wanted == "resident" or (wanted == "auto" and resident <= memory * 0.9):
        return Mode("resident", False, resident, "asked for" if wanted != "auto" else "the model fits")
    if wanted == "auto" and streamed > memory:
        raise MinitronError(
            f"even one block at a time takes {streamed / 1e9:.1f} GB and {device} has {memory / 1e9:.1f} GB free",
            "use a smaller --batch-size or --dtype bfloat16, or --mode stream to try all the same",
        )
    reason = "asked for" if wanted != "auto" else f"{resident / 1e9:.1f} GB do not fit in {memory / 1e9:.1f} GB"
    return Mode("stream", on_disk, streamed, reason)


def batch_size(asked: int | None, seq_len: int, device: torch.device) -> int:
    """Samples per batch: as many as make a few thousand tokens, unless asked otherwise."""
    return asked or max(1, BATCH_TOKENS.get(device.type, 4096) // seq_len)
