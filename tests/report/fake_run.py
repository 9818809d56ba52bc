"""A run directory in seconds: small files in the real formats, written by the real writers where there are any.

The family: large -> middle-pruned -> middle -> small-pruned -> small, and shallow-pruned with fewer layers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from minitron_cli.chain.family import write_family
from minitron_cli.chain.state import Record, save
from minitron_cli.checkpoint.provenance import model_digest, write_manifest, write_plan
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.families.llama import LLAMA
from minitron_cli.spec.axes import size
from minitron_cli.spec.plan import from_scores
from minitron_cli.spec.recipe import Recipe, Step, command_line
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape

LARGE = Shape({"vocab": 211, "hidden": 48, "layer": 6, "head": 8, "kv": 4, "head_dim": 6, "ffn": 120})
TARGETS = {
    "middle-pruned": {"hidden": 36, "ffn": 72},
    "small-pruned": {"hidden": 24, "ffn": 40, "head": 4},
    "shallow-pruned": {"layer": 4},
}
LOSS = {
    "large": 1.312,
    "middle-pruned": 2.871,
    "middle": 1.377,
    "small-pruned": 3.402,
    "small": 1.521,
    "shallow-pruned": 2.204,
}
ACCURACY = {
    "large": 0.842,
    "middle-pruned": 0.421,
    "middle": 0.825,
    "small-pruned": 0.352,
    "small": 0.761,
    "shallow-pruned": 0.55,
}
SPEED = {
    "large": 10_400.0,
    "middle-pruned": 14_900.0,
    "middle": 15_100.0,
    "small-pruned": 23_700.0,
    "small": 23_500.0,
    "shallow-pruned": 15_300.0,
}
SKILLS = ("toy_facts", "toy_story", "toy_arithmetic", "toy_brackets")
SAMPLES = 400
EVAL_DATA = ["runs/fake/world/corpus/valid.jsonl"]

RECIPE = Recipe(
    "fake",
    "A family for tests: large → middle → small, & one of fewer layers <sic>",
    {},
    (
        Step("world", "toy", {}, {"seed": 0}),
        Step(
            "large",
            "train",
            {"model": ("world/teacher-init",), "data": ("world/corpus/train.jsonl",)},
            {"from-scratch": True, "steps": 120},
        ),
        Step(
            "scores-large", "importance", {"model": ("large",), "data": ("world/corpus/train.jsonl",)}, {"samples": 256}
        ),
        Step(
            "middle-pruned",
            "prune",
            {"model": ("large",), "scores": ("scores-large",)},
            {"target": "width", "hidden": 36, "ffn": 72},
        ),
        Step(
            "middle",
            "distill",
            {"student": ("middle-pruned",), "teacher": ("large",), "data": ("world/corpus/train.jsonl",)},
            {"steps": 60},
        ),
        Step(
            "scores-middle",
            "importance",
            {"model": ("middle",), "data": ("world/corpus/train.jsonl",)},
            {"samples": 256},
        ),
        Step(
            "small-pruned",
            "prune",
            {"model": ("middle",), "scores": ("scores-middle",)},
            {"target": "width", "hidden": 24, "ffn": 40, "heads": 4},
        ),
        Step(
            "small",
            "distill",
            {"student": ("small-pruned",), "teacher": ("large",), "data": ("world/corpus/train.jsonl",)},
            {"steps": 80},
        ),
        Step(
            "shallow-pruned",
            "prune",
            {"model": ("large",), "scores": ("scores-large",)},
            {"target": "depth", "layers": 4},
        ),
        Step("speed", "bench", {"models": ("large", "middle", "small")}, {"grid": "32x16,64x8"}),
        Step("figures", "eval", {"models": tuple(LOSS), "data": ("world/corpus/valid.jsonl",)}, {"tasks": "toy"}),
    ),
)
STEPS = {"large": 120, "middle": 60, "small": 80}
TOKENS_PER_STEP = 2048


def write_run(directory: Path, until: str | None = None) -> Path:
    """The whole run; or, with `until`, one that was interrupted in the middle of that step."""
    typed = Path("runs") / directory.name  # as someone may have typed it: the report must not follow it
    records: dict[str, Record] = {}
    for step in RECIPE.steps:
        command = command_line(RECIPE, step, typed)
        going = step.name == until
        _WRITERS[step.verb](directory, step, going)
        digest = "" if going else "d" * 64
        records[step.name] = Record("f" * 64, digest, {}, 0.0 if going else 12.5 + 60 * len(records), command)
        save(directory, records)
        if going:
            return directory
    write_family(RECIPE, directory)
    evaluated = {m["path"]: m for m in json.loads((directory / "figures.json").read_text())["models"]}
    family = json.loads((directory / "family.json").read_text())
    for model in family["models"]:
        figures = evaluated[str(typed / model["name"])]
        model["evaluation"] = {key: value for key, value in figures.items() if key != "path"}
    for step in family["steps"]:
        step["command"] = ["minitron", *records[step["step"]].command]
    (directory / "family.json").write_text(json.dumps(family))
    return directory


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
    options = {
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
    (run / "options.json").write_text(json.dumps({"options": options, "inputs": {}}))
    with (run / "metrics.jsonl").open("w") as stream:
        for step in range(done + 1):
            loss = final + (start - final) * np.exp(-5 * step / steps)
            tokens = step * TOKENS_PER_STEP
            if step:
                ce = loss + 0.08 * rng.normal()
                kd = {"kd": 0.05 + 0.6 * (loss - final) + 0.01 * rng.random()} if teacher else {}
                line = {
                    "step": step,
                    "tokens": tokens,
                    "flops": tokens * flops_per_token,
                    "loss": kd.get("kd", ce),
                    "ce": ce,
                    **kd,
                    "grad_norm": 1.0,
                    "lr": 1e-3,
                    "tokens_per_second": 9_000 + 50 * step,
                    "peak_memory": 900_000_000,
                }
                stream.write(json.dumps(line) + "\n")
            if step % (steps // 10) == 0 or step == steps:
                more = (
                    {"eval_kd": 0.05 + 0.6 * (loss - final), "eval_agreement": 1 - 0.2 * (loss - final)}
                    if teacher
                    else {}
                )
                stream.write(json.dumps({"step": step, "tokens": tokens, "eval_ce": loss, **more}) + "\n")
        if done < steps:
            stream.write('{"step": 9')  # a kill can cut the last line short


def _world(directory: Path, step: Step, going: bool) -> None:
    (directory / "world").mkdir(parents=True, exist_ok=True)


def _shape(name: str) -> Shape:
    parent = {
        "middle-pruned": "large",
        "middle": "middle-pruned",
        "small-pruned": "middle",
        "small": "small-pruned",
        "shallow-pruned": "large",
    }.get(name)
    return LARGE if parent is None else _shape(parent).with_(**TARGETS.get(name, {}))


def _trained(directory: Path, step: Step, going: bool) -> None:
    path, teacher = directory / step.name, step.verb == "distill"
    shape, steps = _shape(step.name), STEPS[step.name]
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


def _scores(directory: Path, step: Step, going: bool) -> None:
    if going:
        return
    model = directory / step.inputs["model"][0]
    shape = _shape(step.inputs["model"][0])
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
    before, after = _shape(source.name), _shape(step.name)
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


def fake_results(directory: Path, typed: Path) -> dict[str, Any]:
    """What `minitron eval --json` gives: models, one row per task, metric and model."""
    models, rows = [], []
    for name, loss in LOSS.items():
        losses = {
            domain: {
                "tokens": 9000,
                "nats_per_token": loss + shift,
                "perplexity": float(np.exp(loss + shift)),
                "bits_per_byte": (loss + shift) / 2.6,
                "kl": max(0.0, loss - LOSS["large"]),
                "top1_agreement": 1 - 0.2 * (loss - LOSS["large"]),
            }
            for domain, shift in (("stories", -0.2), ("arithmetic", 0.2), ("all", 0.0))
        }
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
                "losses": losses,
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
        "gates": [
            {
                "gate": "toy_facts.acc >= 0.8 * reference",
                "model": "small",
                "value": 0.761,
                "bound": 0.67,
                "passed": True,
            }
        ],
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
        "kept": None,
        "comparison": None,
    }
    if name != "large":
        row["kept"] = value / base
        row["comparison"] = {
            "test": "mcnemar",
            "p_value": 0.31 if name == "middle" else 0.00002,
            "num_samples": SAMPLES,
            "better": 10,
            "worse": 17,
            "difference": value - base,
        }
    return row


def _evaluated(directory: Path, step: Step, going: bool) -> None:
    if not going:
        (directory / step.output).write_text(json.dumps(fake_results(directory, Path("runs") / directory.name)))


def _benched(directory: Path, step: Step, going: bool) -> None:
    """What `minitron bench` writes; the figures themselves are made up."""
    rows = []
    for i, (tokens_in, tokens_out) in enumerate(((32, 16), (64, 8))):
        for name in step.inputs["models"]:
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
    settings = {"engine": "hf", "device": "cpu", "dtype": "auto", "grid": "32x16,64x8", "repeats": 5, "memory": 10**9}
    content = {"format": 1, "kind": "bench", "reference": "large", "settings": settings, "models": [], "rows": rows}
    if not going:
        (directory / step.output).write_text(json.dumps(content))


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
