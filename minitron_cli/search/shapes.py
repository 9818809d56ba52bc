"""The shapes that a search ranks, from the source's config and headers alone: no torch."""

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.search.options import SearchOptions
from minitron_cli.spec.search import Candidate, candidates, default_grid
from minitron_cli.spec.shape import num_parameters

MAX_SEQ_LEN = 1024
CALIBRATED = ("hidden", "ffn", "head", "layer", "expert", "expert_ffn")  # one cut of each weighs it in the forecast


def enumerate_shapes(source: Checkpoint, options: SearchOptions) -> list[Candidate]:
    """Candidates on the grid, or an error that says how far the grid's sizes reach."""
    grid = dict(options.grid or default_grid(source.shape))
    if options.ffn_factors:
        grid.pop("ffn", None)
    found = candidates(
        source.family, source.config, source.shape, grid, options.window, ffn_factors=options.ffn_factors
    )
    if not found:
        lines = source.family.expected(source.config)
        low = num_parameters(lines, source.shape.with_(**{axis: min(values) for axis, values in grid.items()}))
        high = num_parameters(lines, source.shape.with_(**{axis: max(values) for axis, values in grid.items()}))
        raise MinitronError(
            f"no shape on the grid has {options.window.low:,.0f} to {options.window.high:,.0f} parameters",
            f"the grid reaches from {low:,} to {high:,}; widen --tolerance, or finer: --grid ffn=1024:4096:64",
        )
    return found


def window_length(source: Checkpoint, options: SearchOptions) -> int:
    """Tokens of a held-out window and of a training sequence."""
    context = int(source.config.get("max_position_embeddings") or MAX_SEQ_LEN)
    if options.seq_len and options.seq_len > context:
        raise MinitronError(f"--seq-len {options.seq_len} is beyond the model's context", f"it takes {context} tokens")
    return options.seq_len or min(context, MAX_SEQ_LEN)
