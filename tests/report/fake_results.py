"""Results of `minitron eval` and `minitron bench` in their real formats."""

from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.provenance import model_digest
from tests.report.fake_recipe import ACCURACY, LOSS, SAMPLES, SKILLS, SPEED

CHANCE = 0.4  # a pruned model is below it
MACHINE = "Test CPU, 2 of 2 cores, float32"
GATE = {"gate": "toy_facts.acc >= 0.8 * reference", "model": "small", "value": 0.761, "bound": 0.67, "passed": True}


def fake_results(directory: Path, typed: Path) -> dict[str, Any]:
    """What `minitron eval --json` gives: models, one row per task, metric and model."""
    models, rows = [], []
    for name, loss in LOSS.items():
        models.append(
            {
                "name": name,
                "path": str(typed / name),
                "digest": model_digest(directory / name),
                "parameters": 1,
                "loss": loss,
                "tokens_per_second": SPEED[name],
                "bits_per_byte": loss / 2.6,
                "accuracy": ACCURACY[name],
                "chance": CHANCE,
                "machine": MACHINE,
                "losses": _losses(loss),
                "error": None,
            }
        )
        rows += [_row(name, task, i) for i, task in enumerate(SKILLS)]
    return {
        "format": 1,
        "reference": "large",
        "settings": {"tasks": "toy"},
        "models": models,
        "rows": rows,
        "gates": [GATE],
    }


def _row(name: str, task: str, i: int) -> dict[str, Any]:
    value, base = ACCURACY[name] - 0.05 * i, ACCURACY["large"] - 0.05 * i
    row: dict[str, Any] = {
        "task": task,
        "metric": "acc",
        "filter": "none",
        "value": value,
        "shots": 0,
        "version": "1",
        "stderr": float(np.sqrt(value * (1 - value) / SAMPLES)),
        "higher_is_better": True,
        "num_samples": SAMPLES,
        "model": name,
        "chance": CHANCE,
        "kept": None,
        "comparison": None,
    }
    if name != "large":
        row["kept"] = (value - CHANCE) / (base - CHANCE)
        row["comparison"] = {
            "test": "mcnemar",
            "p_value": 0.31 if name == "middle" else 0.00002,
            "num_samples": SAMPLES,
            "better": 10,
            "worse": 17,
            "difference": value - base,
        }
    return row


def _losses(loss: float) -> dict[str, dict[str, Any]]:
    """Per domain, and over all of them."""
    return {
        domain: {
            "tokens": 9000,
            "nats_per_token": loss + shift,
            "perplexity": float(np.exp(loss + shift)),
            "bits_per_byte": (loss + shift) / 2.6,
            "kl": max(0.0, loss - LOSS["large"]),
            "top1_agreement": 1 - 0.2 * (loss - LOSS["large"]),
            "difference": None
            if loss == LOSS["large"]
            else {"difference": loss - LOSS["large"], "stderr": 0.004, "num_blocks": 70},
        }
        for domain, shift in (("stories", -0.2), ("arithmetic", 0.2), ("all", 0.0))
    }


def fake_bench(models: tuple[str, ...]) -> dict[str, Any]:
    """What `minitron bench --json` gives; the figures themselves are made up."""
    rows = []
    for i, (tokens_in, tokens_out) in enumerate(((32, 16), (64, 8))):
        for name in models:
            speed = SPEED[name] * (1 + i)
            figures = {
                "prefill_tokens_per_second": speed,
                "decode_tokens_per_second": speed / 30,
                "time_to_first_token": tokens_in / speed,
                "time_per_output_token": 30 / speed,
            }
            rows.append(
                {
                    "model": name,
                    "input": tokens_in,
                    "output": tokens_out,
                    "batch": 1,
                    **{metric: {"median": value, "spread": 0.08} for metric, value in figures.items()},
                    "ratios": {m: SPEED[name] / SPEED["large"] * (1.01 if "second" in m else 1) for m in figures},
                    "kv_bytes": 48 * 576,
                    "peak_bytes": None,
                    "batch_ceiling": 1234,
                }
            )
    settings = {
        "machine": MACHINE,
        "engine": "hf",
        "device": "cpu",
        "dtype": "auto",
        "grid": "32x16,64x8",
        "repeats": 5,
        "memory": 10**9,
    }
    return {"format": 1, "kind": "bench", "reference": "large", "settings": settings, "models": [], "rows": rows}
