"""Whether a pruned model computes what its source, masked, computes: both loaded by transformers, logits compared."""

from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.memory import free_host_memory
from minitron_cli.spec.plan import Plan

TOKENS = (2, 64)  # rows x tokens that are compared
EXACT = 1e-4  # float32 sums in another order
ROUNDED = 5e-2  # where a repair had to round stored values of half precision again


def check_pruned(source: Checkpoint, plan: Plan, directory: Path) -> dict[str, Any]:
    """Compare logits in float32 on random tokens; raises MinitronError where they differ.

    Returns {"checked": False, "why": ..} where memory does not take the source.
    """
    needed = 4 * sum(t.num_bytes // ITEM_BYTES[t.dtype] for t in source.tensors.values()) * 5 // 4
    free = free_host_memory()
    if needed > free:
        return {
            "checked": False,
            "why": f"the source needs {needed / 1e9:.0f} GB in float32, {free / 1e9:.0f} are free",
        }
    import torch

    from minitron_cli.hf.load import load_model
    from minitron_cli.prune.mask import masked_source

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, source.shape["vocab"], TOKENS, generator=generator)
    model = load_model(source.path, torch.float32)
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
