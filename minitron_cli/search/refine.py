"""Distill the best few candidates for a while: rankings right after pruning are not the rankings that last.

In the paper they flip within the first hundreds of steps (Minitron, arXiv 2407.14679, figure 9). Two rounds: every
candidate gets a quarter of the budget; those that are then worse than the best by more than three paired standard
errors *and* a tenth of what training has gained so far are given up; the rest are trained on the whole budget.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.search.cost import FIRST_SHARE, refine_steps
from minitron_cli.search.identity import finished
from minitron_cli.search.parallel import Work, run_all
from minitron_cli.search.result import Entry, standard_error
from minitron_cli.search.workspace import Workspace
from minitron_cli.spec.limits import flag
from minitron_cli.training.presets import resolve
from minitron_cli.training.run import train

Say = Callable[[str], None]


def refine(workspace: Workspace, entries: Sequence[Entry], say: Say) -> None:
    """Set `refined` of the entries that reach the end; every training run is resumed if it was interrupted."""
    tokens = workspace.request.refine_tokens
    say(f"refining {len(entries)} shapes: {tokens // FIRST_SHARE:,} tokens each, then {tokens:,} for those in reach")
    early = _distilled_losses(workspace, entries, tokens // FIRST_SHARE, say)
    best = min(range(len(entries)), key=lambda i: early[i].mean())
    going = []
    for entry, losses in zip(entries, early):
        if hopeless(losses, early[best], entry.losses):
            say(f"{_name(workspace, entry)}: given up after {tokens // FIRST_SHARE:,} tokens")
        else:
            going.append(entry)
    for entry, losses in zip(going, _distilled_losses(workspace, going, tokens, say)):
        entry.refined = losses


def hopeless(losses: np.ndarray, best: np.ndarray, start: np.ndarray | None) -> bool:
    """Whether a candidate's early losses (window,) are too far above the best one's on the same windows."""
    gap = losses - best
    won = float(start.mean() - losses.mean()) if start is not None else 0.0
    return bool(gap.mean() > 3 * standard_error(gap) and gap.mean() > 0.1 * max(won, 0.0))


def _name(workspace: Workspace, entry: Entry) -> str:
    return workspace.request.name(entry.candidate.shape)


def _distilled_losses(workspace: Workspace, entries: Sequence[Entry], tokens: int, say: Say) -> list[np.ndarray]:
    """Held-out losses (window,) of each entry after distilling on `tokens`, one after the other or on all devices."""
    outputs = [workspace.request.output / "refined" / f"{_name(workspace, entry)}-{tokens}" for entry in entries]
    settings = [_settings(workspace, _name(workspace, e), tokens, o) for e, o in zip(entries, outputs)]
    todo = [one for one, output in zip(settings, outputs) if not finished(output, one)]
    if workspace.request.devices:
        run_all([_work(one) for one in todo], workspace.request.devices, say)
    else:
        for one in todo:
            say(f"distilling {Path(one['student']).name} on {tokens:,} tokens")
            train(resolve({**one, "verb": "distill", "device": workspace.request.device}, None))
    found = []
    for entry, output in zip(entries, outputs):
        found.append(workspace.loss_of(output, output.name))
        say(f"{_name(workspace, entry)}: {found[-1].mean():.4f} {workspace.request.unit} after {tokens:,} tokens")
    return found


def _settings(workspace: Workspace, name: str, tokens: int, output: Path) -> dict[str, Any]:
    """The training's options except its device."""
    request = workspace.request
    steps = refine_steps(tokens, request.batch, workspace.seq_len)
    return {
        "student": str(request.output / "candidates" / name),
        "teacher": (str(workspace.source.path),),
        "data": request.data,
        "output": str(output),
        "steps": steps,
        "batch": request.batch,
        "seq_len": workspace.seq_len,
        "lr": request.lr,
        "warmup": steps // 10,
        "loss": "logits",
        "seed": request.seed,
        "separator": request.separator,
        "text_field": request.text_field,
    }


def _work(settings: dict[str, Any]) -> Work:
    """The same settings as a command line."""
    words = ["distill", settings["student"]]
    for key, value in settings.items():
        if key != "student" and value is not None:
            each = value if isinstance(value, tuple) else (value,)
            words += [word for item in each for word in (flag(key), str(item))]
    output = Path(settings["output"])
    return Work(f"distilling {output.name}", tuple(words), output.with_name(f"{output.name}.log"))
