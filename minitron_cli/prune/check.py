"""Whether a pruned model computes what its source, masked, computes: both loaded by transformers, logits compared."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.memory import free_host_memory
from minitron_cli.spec.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = (2, 64)  # rows x tokens that are compared
ROWS, WINDOW = 16, 256  # of data, for losses
EXACT = 1e-4  # float32 sums in another order
ROUNDED = 5e-2  # where a repair had to round stored values of half precision again


def _too_large(source: Checkpoint) -> str | None:
    """Why the source cannot be loaded, None where it can."""
    tensors = [source.tensors[name] for name in source.matches]
    needed = 4 * sum(t.num_bytes // ITEM_BYTES[t.dtype] for t in tensors) * 5 // 4
    free = free_host_memory()
    return f"the source needs {needed / 1e9:.0f} GB in float32, {free / 1e9:.0f} are free" if needed > free else None


def check_compensated(
    source: Checkpoint, plan: Plan, directory: Path, data: Sequence[str], made: str
) -> dict[str, Any]:
    """Losses of the source, of the same cut by plain trimming, and of the result, as it was `made`, side by side.

    Nats per token in float32 on ROWS windows of `data`, drawn by another seed than calibration samples are by default.
    Without data the result is only run, on random tokens. Plain trimming is the masked source; along directions of the
    residual stream there is no such thing.
    """
    if data and "vocab" in plan.kept:
        return {"checked": False, "why": "with a cut vocabulary losses per token do not compare; see `minitron eval`"}
    if why := _too_large(source):
        return {"checked": False, "why": why}
    import torch

    from minitron_cli.hf.load import load_model
    from minitron_cli.hf.source import load_source
    from minitron_cli.prune.mask import masked_source

    ids = torch.from_numpy(_rows(source, data)) if data else torch.randint(0, plan.target["vocab"], TOKENS)
    pruned = load_model(directory, torch.float32)
    compensated = _loss(lambda part: pruned(part, use_cache=False).logits, ids)
    if not np.isfinite(compensated):
        raise MinitronError("the pruned model gives no finite numbers", "try a larger --ridge, or more --samples")
    losses = {}
    if data:
        del pruned
        model = load_source(source, torch.float32)
        losses["source"] = _loss(lambda part: model(part, use_cache=False).logits, ids)
        if plan.basis is None:
            losses["plain"] = _loss(masked_source(model, source.family, plan), ids)
        losses[made] = compensated
    return {"checked": True, "losses": losses, "tokens": ids.numel()}


def _rows(source: Checkpoint, data: Sequence[str]) -> np.ndarray:
    from minitron_cli.prune.calibration import row_length, text_rows

    return text_rows(source, data, ROWS, row_length(source, None, WINDOW), 1, allow_fewer=True)[0]


def _loss(logits: Callable[["Tensor"], "Tensor"], ids: "Tensor") -> float:
    """Nats per predicted token: ids (row, token)."""
    import torch

    with torch.no_grad():
        rows = [torch.nn.functional.cross_entropy(logits(row[None])[0, :-1].float(), row[1:]) for row in ids]
    return float(torch.stack(rows).mean())


def check_pruned(source: Checkpoint, plan: Plan, directory: Path) -> dict[str, Any]:
    """Compare logits in float32 on random tokens; raises MinitronError where they differ.

    Returns {"checked": False, "why": ..} where memory does not take the source.
    """
    if why := _too_large(source):
        return {"checked": False, "why": why}
    import torch

    from minitron_cli.hf.load import load_model
    from minitron_cli.hf.source import load_source
    from minitron_cli.prune.mask import masked_source

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, plan.target["vocab"], TOKENS, generator=generator)
    model = load_source(source, torch.float32)
    expected = masked_source(model, source.family, plan)(ids)
    del model
    pruned = load_model(directory, torch.float32)
    with torch.no_grad():
        found = pruned(ids, use_cache=False).logits
    error = float((found - expected).norm() / expected.std() / found.numel() ** 0.5)
    allowed = ROUNDED if source.family.repair and "hidden" in plan.kept else EXACT
    if not error <= allowed:
        raise MinitronError(
            f"the pruned model does not compute what the masked source does (relative error {error:.2g})",
            "this is a bug in the family's table or in transformers; please report it with the output of `inspect`",
        )
    return {"checked": True, "relative_error": error, "allowed": allowed}
