"""What a step leaves behind whose loss or gradient is not finite: all that is needed to look at it again.

    OUT/run/not-finite-step-N/repro.json              values, rows, norms by layer, seed, versions
    OUT/run/not-finite-step-N/rows-R.safetensors      the token ids (row, token) and mask of rank R

The weights before the step are OUT/run/step-(N-1).
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from minitron_cli.checkpoint.provenance import versions
from minitron_cli.hf.devices import machine_words
from minitron_cli.training.loop import Job, NotFinite
from minitron_cli.training.rows import micro_batches
from minitron_cli.training.schedule import learning_rate
from minitron_cli.training.state import seed_step

PREFIX = "not-finite-step-"
_LAYER = re.compile(r"^(.*?\.\d+)\.")


def write_repro(run: Path, job: Job, error: NotFinite, rows: list[list[int]] | None, inputs: Mapping[str, str]) -> Path:
    """Run the step's forward and backward again, without clipping, and write what comes of it (a collective).

    `rows` are (file, window) of every row of the global batch, None where the data is streamed.
    """
    world, step = job.world, error.step
    place = run / f"{PREFIX}{step + 1}"
    if world.first:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    world.barrier()
    share = error.share
    rows_of_rank = {"ids": share.ids.contiguous(), "mask": share.mask.contiguous()}
    save_file(rows_of_rank, place / f"rows-{world.rank}.safetensors")
    job.optimizer.zero_grad()
    seed_step(job.seed, step, world.rank)
    tokens, _ = world.agree(share.num_targets(), False)
    batches = micro_batches(share, job.at(step).micro_batch, tokens, world.device)
    micros = [{n: float(v) for n, v in job.backward(micro).items()} for micro in batches]
    norms = _norms(job)
    if world.first:
        content = {
            "step": step + 1,
            "values": error.values,
            "learning_rate": learning_rate(job.schedule, step),
            "rows": rows,
            "micro_batch": job.at(step).micro_batch,
            "ranks": world.size,
            "micro_batches_of_rank_0": micros,
            "norms": norms,
            "seed": job.seed,
            "inputs": dict(inputs),
            "versions": versions(),
            "machine": machine_words(world.device),
        }
        (place / "repro.json").write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
    return place


def _norms(job: Job) -> dict[str, dict[str, float]]:
    """Euclidean norms of weights and gradients, by layer; a parameter outside all layers is by itself."""
    squares: dict[str, dict[str, float]] = {}
    for name, parameter in job.step.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = found[1] if (found := _LAYER.match(name)) else name
        sums = squares.setdefault(layer, {"weight": 0.0, "gradient": 0.0})
        sums["weight"] += _square(parameter)
        sums["gradient"] += _square(parameter.grad)
    return {layer: {name: math.sqrt(value) for name, value in sums.items()} for layer, sums in squares.items()}


def _square(tensor: Tensor | None) -> float:
    if tensor is None:
        return 0.0
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm) ** 2


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite: they become text."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
