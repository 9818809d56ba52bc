"""What a measurement would take, from config and headers alone: no torch, nothing is read or written."""

from typing import Any

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.importance.options import Options, sample_length
from minitron_cli.spec.shape import flops_per_token


def forecast(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Samples, tokens, FLOPs and weights of the pass, and the depth sweeps behind it."""
    seq_len = sample_length(checkpoint, options)
    weights = {m.weight.name: m.weight for m in checkpoint.matches.values() if not m.weight.junk}.values()
    tokens = options.samples * seq_len
    layers = checkpoint.shape["layer"]
    passes = sum(1 + (layers - size) * (layers - size + 1) / 2 / layers for _, size in options.curves)
    return {
        "model": str(checkpoint.path),
        "metric": options.metric,
        "samples": options.samples,
        "seq_len": seq_len,
        "tokens": tokens if options.needs_data else 0,
        "flops": tokens * flops_per_token(weights, checkpoint.shape, seq_len) if options.needs_data else 0,
        "weight_bytes": checkpoint.num_bytes,
        "depth_passes": round(passes, 2),
        "depth_samples": min(options.depth_samples, options.samples) if options.wants_depth else 0,
    }
