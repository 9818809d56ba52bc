"""Load the exported student as a user will, and compare its loss with that of the student in memory.

What a save and a load can get wrong (a name, a tied weight, a config that says something else) changes a loss by far
more than rounding does. The text is made up: any will do, and no data has to be read again.
"""

from pathlib import Path

import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.hf.load import load_model
from minitron_cli.training.assemble import Assembly

_TOKENS = 64
# How far the losses may be apart, relative to the loss: several times what rounding to the type has been seen to do.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 1e-2}


def live_loss(assembly: Assembly, vocab: int) -> float:
    """Cross-entropy (nats per token) of the student in memory on the made-up text (a collective)."""
    step, world = assembly.job.step, assembly.job.world
    ids = _text(vocab).to(world.device)
    weights = torch.full(ids.shape, 1 / (ids.shape[1] - 1), device=world.device)
    weights[:, -1] = 0.0
    step.eval()
    try:
        return float(assembly.measure(ids, weights)["ce"])
    finally:
        step.train()


def check_reloaded(
    directory: Path, live: float, vocab: int, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> None:
    """Raise MinitronError where the model in `directory` does not load, or has not the loss `live`.

    `dtype` is the least precise type that either loss was computed in.
    """
    computed = torch.float32 if device.type == "cpu" else dtype
    model, ids = load_model(directory, computed, device, trust_remote_code=trust_remote_code), _text(vocab).to(device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1, :vocab].float()
    loss = float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    if not abs(loss - live) <= _TOLERANCE[dtype] * max(1.0, live):
        raise MinitronError(
            f"the exported model does not compute what the trained one does: its loss on the same {_TOKENS} tokens is "
            f"{loss:.4f}, not {live:.4f}",
            "the run's checkpoints are kept; report this with the model's config.json",
        )


def _text(vocab: int) -> Tensor:
    """The same random ids (1, token) below `vocab`, every time."""
    return torch.randint(vocab, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
