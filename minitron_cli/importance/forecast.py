"""What a measurement would take, from config and headers alone: no torch, nothing is read or written."""

from typing import Any

from minitron_cli.checkpoint.architecture import Architecture, stored_weights
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.importance.options import Options, sample_length
from minitron_cli.spec.shape import copies, flops_per_token, is_routed, num_elements


def forecast(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Samples, tokens, FLOPs and weights of the pass, and the depth sweeps after it."""
    tokens, flops = pass_cost(checkpoint, options, str(checkpoint.path))
    layers = checkpoint.shape["layer"]
    passes = sum(1 + (layers - size) * (layers - size + 1) / 2 / layers for _, size in options.curves)
    return {
        "model": str(checkpoint.path),
        "metric": options.metric,
        "samples": options.samples,
        "seq_len": sample_length(checkpoint.config, options, str(checkpoint.path)),
        "tokens": tokens,
        "flops": flops,
        "weight_bytes": checkpoint.num_bytes,
        "depth_passes": round(passes, 2),
        "depth_samples": min(options.depth_samples, options.samples) if options.wants_depth else 0,
    }


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
