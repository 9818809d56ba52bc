"""What a measurement would take, from config and headers alone: no torch, nothing is read or written."""

from dataclasses import dataclass
from typing import Any

from minitron_cli.checkpoint.architecture import Architecture, stored_weights
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.hf.context import batch_size
from minitron_cli.hf.memory import INTERPRETER_BYTES
from minitron_cli.importance import gram_sizes
from minitron_cli.importance.options import Options, sample_length
from minitron_cli.spec.shape import copies, flops_per_token, is_routed, mlp_width, num_elements


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that each part of the work takes on the device, in the dtype of the computation."""

    model: int  # every weight, and every Gram matrix
    block: int  # the largest layer, or the embedding with the first one; half of a layer's Gram matrices
    batch: int  # activations of one batch
    states: int  # hidden states of all samples, for streaming

    @property
    def resident(self) -> int:
        return self.model + self.batch

    @property
    def streamed(self) -> int:
        """Without the hidden states, which may be on disk: one block at work, and the next, as it is read and built."""
        return 2 * self.block + self.batch


def forecast(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Samples, tokens, FLOPs and weights of the pass, and the depth sweeps after it."""
    tokens, flops = pass_cost(checkpoint, options, str(checkpoint.path))
    layers = checkpoint.shape["layer"]
    passes = sum(1 + (layers - size) * (layers - size + 1) / 2 / layers for _, size in options.curves)
    passes += greedy_passes(layers, options.depth_greedy)
    return {
        "model": str(checkpoint.path),
        "metric": options.metric,
        "samples": options.samples,
        "seq_len": sample_length(checkpoint.config, options, str(checkpoint.path)),
        "tokens": tokens,
        "flops": flops,
        "weight_bytes": checkpoint.num_bytes,
        **(_memory(checkpoint, options) if options.needs_data else {}),
        **({"second_moments_bytes": gram_sizes.disk_bytes(checkpoint)} if options.second_moments else {}),
        "depth_passes": round(passes, 2),
        "depth_samples": min(options.depth_samples, options.samples) if options.wants_depth else 0,
    }


def greedy_passes(layers: int, steps: int) -> float:
    """Passes over all layers that dropping `steps` of them one by one takes: a sweep of single layers for each."""
    return sum(left * (left + 1) / 2 for left in range(layers, layers - steps, -1)) / layers


def _memory(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Bytes on a CPU, in the dtype of the computation: whole, layer by layer, and the hidden states of all samples,
    which are in memory too where they fill less than half of it, and else on disk."""
    dtype = "float32" if options.dtype == "auto" else options.dtype
    seq_len = sample_length(checkpoint.config, options, str(checkpoint.path))
    batch = min(batch_size(options.batch_size, seq_len, "cpu"), options.samples)
    item = 4 if dtype == "float32" else 2
    need = needs(checkpoint, batch * seq_len, options.samples * seq_len, item, options.second_moments)
    return {
        "memory_dtype": dtype,
        "resident_memory": INTERPRETER_BYTES + need.resident,
        "streamed_memory": INTERPRETER_BYTES + need.streamed,
        "states_bytes": need.states,
    }


def needs(
    checkpoint: Checkpoint, batch_tokens: int, tokens: int, item_bytes: int, second_moments: bool = False
) -> Needs:
    """Estimate the bytes of the parts; `tokens` are those of all samples of this process."""
    shape, layers, outside = checkpoint.shape, [0] * checkpoint.shape["layer"], 0
    for match in checkpoint.matches.values():
        if not match.weight.junk:
            elements = num_elements(match.weight, shape)
            if match.layer is not None:
                layers[match.layer] += elements
            else:
                outside += elements
    per_token = 8 * shape["hidden"] + 4 * mlp_width(shape) + 4 * shape.get("head", 0) * shape.get("head_dim", 0)
    embedding = shape["vocab"] * shape["hidden"]
    grams, of_layer = gram_sizes.bytes_of(checkpoint) if second_moments else (0, 0)
    return Needs(
        model=(sum(layers) + outside) * item_bytes + grams,
        # Of a block there are two while the next is read ahead, of its Gram matrices never.
        block=max(max(layers), layers[0] + embedding) * item_bytes + of_layer // 2,
        batch=batch_tokens * per_token * item_bytes,
        states=tokens * shape["hidden"] * item_bytes,
    )


def pass_cost(model: Checkpoint | Architecture, options: Options, name: str) -> tuple[int, int]:
    """Tokens of the pass over calibration samples, and their forward FLOPs; `name` is the model's in errors."""
    if not options.needs_data:
        return 0, 0
    seq_len = sample_length(model.config, options, name)
    tokens = options.samples * seq_len
    weights, shape = stored_weights(model), model.shape
    flops = flops_per_token(weights, shape, seq_len)
    if options.wants_damage and "expert" in shape:  # each token meets as many other experts once more
        routed = sum(num_elements(w, shape) * copies(w, shape) for w in weights if is_routed(w))
        flops += 2 * routed * shape["expert_active"] // shape["expert"]
    return tokens, tokens * flops
