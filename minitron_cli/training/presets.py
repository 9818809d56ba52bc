"""Published training settings by name. Only values that their source states; every one can be overridden.

Sources: Minitron (arXiv 2407.14679, section 4), Llama-3.1-Minitron and MN-Minitron (arXiv 2408.11796, table 4).
The papers name no optimizer settings beyond these, so betas, weight decay and clipping keep the defaults of `Options`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.training.options import Options

_BILLION = 10**9

PRESETS: dict[str, dict[str, Any]] = {
    # Warm-up "as Nemotron-4" and not stated: the default stays.
    "minitron": {"lr": 2e-4, "min_lr": 4.5e-7, "schedule": "cosine",
                 "batch": 1152, "seq_len": 4096, "tokens": 94 * _BILLION},
    "llama-3.1-minitron": {"lr": 1e-4, "min_lr": 1e-5, "warmup": 40, "schedule": "cosine",
                           "batch": 1152, "seq_len": 8192, "tokens": 94 * _BILLION},
    "mn-minitron": {"lr": 1e-4, "min_lr": 4.5e-7, "warmup": 60, "schedule": "cosine",
                    "batch": 768, "seq_len": 8192, "tokens": 380 * _BILLION},
    # The pruning stage: scripts/pruning.sh of the released code (arXiv 2310.06694); 3200 steps.
    "sheared-llama": {"lr": 1e-4, "min_lr": 1e-5, "warmup": 320, "mask_warmup": 640, "schedule": "cosine",
                      "weight_decay": 0.0, "batch": 32, "seq_len": 4096, "tokens": 3200 * 32 * 4096},
    # A fifth of the original peak rate (Llama 3.1's was 3e-4 at 8B; give --lr for another model), cross-entropy only.
    "teacher-correction": {"lr": 6e-5, "warmup": 120, "schedule": "cosine", "tokens": 100 * _BILLION},
}  # fmt: skip


def resolve(given: Mapping[str, Any], preset: str | None) -> Options:
    """Options from what was typed (None = not typed), then the preset, then the defaults."""
    if preset is not None and preset not in PRESETS:
        raise MinitronError(f"unknown preset {preset!r}", near_matches(preset, list(PRESETS)))
    typed = {k: v for k, v in given.items() if v is not None}
    known = {f.name for f in fields(Options)}
    assert set(typed) <= known, sorted(set(typed) - known)
    base = dict(PRESETS[preset]) if preset else {}
    # The length is one quantity in two units: naming either drops the preset's, and a rate typed below the preset's
    # floor would leave a floor above the peak.
    if "steps" in typed:
        base.pop("tokens", None)
    if "lr" in typed and "min_lr" not in typed and "min_lr" in base and base["min_lr"] > typed["lr"]:
        base.pop("min_lr")
    return Options(**{**base, **typed})
