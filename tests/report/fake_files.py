"""Single files of a run in their real formats: checkpoint, metrics, scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from minitron_cli.families.llama import LLAMA
from minitron_cli.spec.axes import size
from minitron_cli.spec.shape import Shape
from tests.report.fake_recipe import EVAL_DATA, TOKENS_PER_STEP


def write_checkpoint(path: Path, shape: Shape, seed: int) -> None:
    """Config and weights of a Llama, random, in float16 to be small."""
    rng = np.random.default_rng(seed)
    config = {"model_type": "llama", **{key: shape[axis] for axis, key in LLAMA.config_keys.items()}}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    tensors = {}
    for weight in LLAMA.expected({**config, "tie_word_embeddings": False}):
        for layer in range(shape["layer"] if "layer" in weight.name_axes else 1):
            dims = [size(dim, shape.sizes) for dim in weight.dims]
            tensors[weight.name.replace("{layer}", str(layer))] = rng.normal(0, 0.02, dims).astype(np.float16)
    save_file(tensors, path / "model.safetensors")


def write_metrics(
    run: Path, steps: int, done: int, final: float, start: float, teacher: bool, flops_per_token: float
) -> None:
    """What the recorder writes: an evaluation first, a line per step, an evaluation every tenth of the way."""
    rng = np.random.default_rng(steps)
    run.mkdir(parents=True, exist_ok=True)
    (run / "options.json").write_text(
        json.dumps({"options": _options(steps, teacher), "inputs": {}, "machine": "Train GPU"})
    )
    with (run / "metrics.jsonl").open("w") as stream:
        for step in range(done + 1):
            loss = final + (start - final) * np.exp(-5 * step / steps)
            divergence = 0.05 + 0.6 * (loss - final)
            at = {"step": step, "tokens": step * TOKENS_PER_STEP}
            if step:
                ce = loss + 0.08 * rng.normal()
                kd = {"kd": divergence + 0.01 * rng.random()} if teacher else {}
                line = {
                    **at,
                    "flops": step * TOKENS_PER_STEP * flops_per_token,
                    "loss": kd.get("kd", ce),
                    "ce": ce,
                    **kd,
                }
                line |= {
                    "grad_norm": 1.0,
                    "lr": 1e-3,
                    "tokens_per_second": 9_000 + 50 * step,
                    "peak_memory": 900_000_000,
                }
                stream.write(json.dumps(line) + "\n")
            if step % (steps // 10) == 0 or step == steps:
                kd = {"eval_kd": divergence, "eval_agreement": 1 - 0.2 * (loss - final)} if teacher else {}
                stream.write(json.dumps({**at, "eval_ce": loss, **kd}) + "\n")
        if done < steps:
            stream.write('{"step": 9')  # a kill can cut the last line short


def _options(steps: int, teacher: bool) -> dict[str, Any]:
    """The options that the report reads; a real run has more of them."""
    return {
        "verb": "distill" if teacher else "train",
        "steps": steps,
        "lr": 2e-3,
        "schedule": "cosine",
        "seq_len": 128,
        "eval_data": EVAL_DATA,
        "eval_windows": 128,
        "separator": "auto",
        "text_field": None,
        "teacher": ["runs/fake/large"] if teacher else [],
        "student": "runs/fake/student",
        "from_scratch": not teacher,
    }


def fake_scores(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Long-tailed, as real ones are; a few channels stand out."""
    rng = np.random.default_rng(seed)
    layers, depth = shape["layer"], np.linspace(1.0, 2.5, shape["layer"])[:, None]
    hidden = rng.lognormal(0, 0.5, shape["hidden"])
    hidden[:2] *= 8
    return {
        "hidden": hidden,
        "ffn": rng.lognormal(0, 0.8, (layers, shape["ffn"])) * depth,
        "head": rng.lognormal(0, 0.4, (layers, shape["head"])) * depth,
        "layer": np.abs(0.12 + 0.5 * (np.linspace(-1, 1, layers) ** 2) + 0.03 * rng.normal(size=layers)),
    }
