"""A run directory in seconds: small files in the real formats, written by the real writers where there are any."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.chain.state import Record, save, save_recipe
from minitron_cli.chain.summary import write_summary
from minitron_cli.checkpoint.provenance import model_digest, write_manifest, write_plan
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.recipe import Step, command_line
from minitron_cli.spec.scores import Scores
from tests.report.fake_files import fake_scores, write_checkpoint, write_metrics
from tests.report.fake_recipe import LOSS, RECIPE, STEPS, TARGETS, TOKENS_PER_STEP, shape_of
from tests.report.fake_results import fake_bench, fake_results


def write_run(directory: Path, until: str | None = None) -> Path:
    """The whole run; or, with `until`, one that was interrupted in the middle of that step."""
    typed = Path("runs") / directory.name  # as someone may have typed it: the report must not follow it
    records: dict[str, Record] = {}
    save_recipe(directory, RECIPE)
    for step in RECIPE.steps:
        command = command_line(RECIPE, step, typed)
        going = step.name == until
        _WRITERS[step.verb](directory, step, going)
        digest = "" if going else "d" * 64
        cost = {} if going else cost_of(step)
        records[step.name] = Record("f" * 64, digest, {}, 0.0 if going else 12.5 + 60 * len(records), command, **cost)
        save(directory, records)
        if going:
            return directory
    write_summary(RECIPE, directory)
    evaluated = {m["path"]: m for m in json.loads((directory / "figures.json").read_text())["models"]}
    family = json.loads((directory / "family.json").read_text())
    for model in family["models"]:
        figures = evaluated[str(typed / model["name"])]
        model["evaluation"] = {key: value for key, value in figures.items() if key != "path"}
    for step in family["steps"]:
        step["command"] = ["minitron", *records[step["step"]].command]
    (directory / "family.json").write_text(json.dumps(family))
    return directory


def cost_of(step: Step) -> dict[str, dict[str, float]]:
    """What a step is said to have taken, and a forecast that is a tenth above it; nothing for what does no work."""
    if step.name not in STEPS:
        return {"forecast": {}, "took": {}}
    tokens = STEPS[step.name] * TOKENS_PER_STEP
    took = {"tokens": tokens, "flops": tokens * 6.0 * shape_of(step.name)["hidden"] * 4000, "disk_bytes": 1_000_000,
            "all_bytes": 5_000_000, "memory_bytes": 900_000_000, "host_bytes": 900_000_000}  # fmt: skip
    return {"forecast": {key: 1.1 * value for key, value in took.items()}, "took": took}


def _world(directory: Path, step: Step, going: bool) -> None:
    (directory / "world").mkdir(parents=True, exist_ok=True)


def _trained(directory: Path, step: Step, going: bool) -> None:
    path, teacher = directory / step.name, step.verb == "distill"
    shape, steps = shape_of(step.name), STEPS[step.name]
    flops = 6.0 * shape["hidden"] * 4000
    start = LOSS[f"{step.name}-pruned"] if teacher else 5.2
    done = steps // 2 if going else steps
    write_metrics(path / "run", steps, done, LOSS[step.name], start, teacher, flops)
    if going:
        return
    write_checkpoint(path, shape, seed=len(step.name))
    options = json.loads((path / "run" / "options.json").read_text())["options"]
    tokens = steps * TOKENS_PER_STEP
    parent = directory / step.inputs["student"][0] if teacher else None
    write_manifest(
        path,
        verb=step.verb,
        options=options,
        inputs={},
        parent=parent,
        training={"steps": steps, "tokens": tokens, "flops": tokens * flops, "first": {}, "last": {}},
    )


def _scores(directory: Path, step: Step, going: bool) -> None:
    if going:
        return
    model = directory / step.inputs["model"][0]
    shape = shape_of(step.inputs["model"][0])
    values = fake_scores(shape, seed=shape["hidden"])
    raw: dict[str, np.ndarray] = {"count": np.array([128, 128])}
    depth: dict[str, Any] = {}
    if step.name == "scores-large":
        for block in (1, 2):
            damage = np.convolve(values["layer"], np.ones(block), "valid")
            raw[f"depth.loss.{block}"] = LOSS["large"] + damage
            depth[f"loss.{block}"] = {"full": LOSS["large"], "tokens": 8192, "samples": 64, "best": {}, "passes": 3.0}
        raw["depth.loss.greedy"] = LOSS["large"] + np.array([0.1, 0.4])
        depth["loss.greedy"] = {"full": LOSS["large"], "tokens": 8192, "samples": 64, "order": [2, 3]}
    provenance = {
        "model": {"name": f"runs/fake/{model.name}", "digest": model_digest(model)},
        "samples": 256,
        "seq_len": 128,
        "seed": 0,
        "dtype": "float32",
        "metric": "activation",
        "aggregation": {"batch": "l2", "seq": "mean"},
        "layer_score": "influence",
        "depth": depth,
    }
    write_scores(directory / step.output, Scores(values, provenance), raw)


def _pruned(directory: Path, step: Step, going: bool) -> None:
    if going:
        return
    source = directory / step.inputs["model"][0]
    before, after = shape_of(source.name), shape_of(step.name)
    plan = from_scores(Scores(fake_scores(before, seed=before["hidden"])), before, after)
    path = directory / step.name
    write_checkpoint(path, after, seed=len(step.name))
    write_plan(path, plan)
    write_manifest(
        path,
        verb="prune",
        options={"target": TARGETS[step.name], "force": False},
        inputs={"model": {"name": str(source), "digest": model_digest(source)}},
        parent=source,
        shape={"source": dict(before.sizes), "target": dict(after.sizes)},
        kept_layers=None,
    )


def _evaluated(directory: Path, step: Step, going: bool) -> None:
    if not going:
        (directory / step.output).write_text(json.dumps(fake_results(directory, Path("runs") / directory.name)))


def _benched(directory: Path, step: Step, going: bool) -> None:
    if not going:
        (directory / step.output).write_text(json.dumps(fake_bench(step.inputs["models"])))


_WRITERS: Mapping[str, Any] = {
    "toy": _world,
    "train": _trained,
    "distill": _trained,
    "importance": _scores,
    "prune": _pruned,
    "eval": _evaluated,
    "bench": _benched,
}

if __name__ == "__main__":
    import sys

    print(write_run(Path(sys.argv[1]), *sys.argv[2:]))
