"""Learned masks against one-shot cuts, at the same number of tokens: held-out loss after the cut and at the end.

    python -m tests.benchmarks.masks [--world stories|toy] [--target h48-f96] [--seeds 3] [--steps 400] [--share 0.75]
        [--batch 8] [--work DIR]

Arms: `plain` is cut by activation scores and distilled for all steps, `compensated` the same with least squares and
neurons by residual error; `masks-ce` shears for a share of the steps with cross-entropy, as published, and is distilled
for the rest; `masks-kd` shears with the source as the teacher; `masks-kd-scores` starts its masks by the scores.
All distill logits from the source, on the same texts, with one schedule (warm-up, cosine to a tenth) for each stage.
`cut` is the loss of the pruned model where its distillation begins: learned masks have trained for their share of the
tokens by then. `gap` is the widest of the masks' constraints at the end. `FLOPs` are of the whole arm, relative to
plain: masked steps compute the whole source.
Everything is kept in DIR, so that a second call goes on where one was stopped.
"""

import argparse
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from minitron_cli.__main__ import run as minitron
from tests.benchmarks.compensation import ARMS, SEQ_LEN, WINDOWS, WORLDS, World, measure
from tests.benchmarks.measure import parse

ONE_SHOT = {"plain": ARMS["plain"], "compensated": ARMS["residual"]}
LEARNED = {"masks-ce": ["--loss", "ce"], "masks-kd": ["--loss", "logits"], "masks-kd-scores": ["--loss", "logits"]}


def result(*line: object) -> dict[str, Any]:
    """Run a command line and read its JSON."""
    with redirect_stdout(io.StringIO()) as out:
        assert minitron([*map(str, line), "--json"]) == 0, line
    return json.loads(out.getvalue())


def schedule(world: World, steps: int, lr: float, seed: int) -> list[object]:
    """What both stages of training have in common."""
    text = ["--data", world.train, *world.separator, "--eval-data", world.held, "--eval-windows", WINDOWS]
    length = ["--steps", steps, "--batch", world.batch, "--seq-len", SEQ_LEN, "--seed", seed, "--eval-every", steps]
    rates = ["--lr", lr, "--min-lr", lr / 10, "--warmup", min(world.warmup, steps // 4), "--weight-decay", 0]
    return [*text, *length, *rates, "--device", "cpu"]


def arm(world: World, target: str, name: str, steps: int, masked: int, seed: int, work: Path) -> dict[str, float]:
    """The losses of one arm, {"cut", "end"} in nats per token, its FLOPs and gap; learned masks have `masked` steps."""
    scores, pruned = (
        work / f"{world.teacher.name}-{seed}.safetensors",
        work / f"{target}-{name}-{steps}-{masked}-{world.batch}-{seed}",
    )
    if not scores.exists():
        measure(world, work, seed)
    spent, gap, sizes = 0.0, 0.0, world.targets[target]
    if name in ONE_SHOT:
        result("prune", world.teacher, *sizes, *ONE_SHOT[name], "--scores", scores, "-o", pruned, "--overwrite")
        left = steps
    else:
        left = steps - masked
        start = ["--scores", scores] if name.endswith("scores") else []
        # No schedule so short lets masks settle as well as thousands of steps do.
        more = [*LEARNED[name], *start, "--max-gap", 0.5]
        sheared = result("shear", world.teacher, *sizes, *more, *schedule(world, masked, world.lr, seed), "-o", pruned)
        spent, last = sheared["flops"], sheared["loss"]["last"]
        gap = max(abs(value) for key, value in last.items() if key.startswith("gap_"))
    line = ["distill", pruned, "--teacher", world.teacher, "--loss", "logits"]
    tuned = result(*line, *schedule(world, left, world.lr, seed + 100), "-o", f"{pruned}-tuned")
    evaluated = tuned["eval"]
    return {
        "cut": evaluated["before"]["eval_ce"],
        "end": evaluated["after"]["eval_ce"],
        "flops": spent + tuned["flops"],
        "gap": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="stories")
    parser.add_argument("--target", default="h48-f96")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--share", type=float, default=0.75, help="of the steps in which masks are learned")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=[*ONE_SHOT, *LEARNED], default=[*ONE_SHOT, *LEARNED])
    parser.add_argument("--work", type=Path, default=Path("runs/masks"))
    args = parse(parser, seeds=1, steps=16, arms=["plain", "masks-kd-scores"])
    args.work.mkdir(parents=True, exist_ok=True)
    world, kept = replace(WORLDS[args.world](args.work), batch=args.batch), args.work / "results.jsonl"
    masked, same = round(args.steps * args.share), (args.world, args.target, args.steps, args.share, args.batch)
    known = {tuple(r["key"]): r for r in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    for seed in range(args.seeds):
        for name in args.arms:
            key = (*same, name, seed)
            if key not in known:
                known[key] = {"key": key, **arm(world, args.target, name, args.steps, masked, seed, args.work)}
                with kept.open("a") as stream:
                    stream.write(json.dumps(known[key]) + "\n")
    print(f"{args.world} {args.target}, {args.steps} steps of {world.batch} x {SEQ_LEN} tokens, {args.seeds} seeds")
    print(f"{'':18}{'cut':>16}{'end':>16}{'FLOPs':>8}{'gap':>8}")
    base = mean(known[(*same, args.arms[0], seed)]["flops"] for seed in range(args.seeds))
    for name in args.arms:
        found = [known[(*same, name, seed)] for seed in range(args.seeds)]
        shown = [_spread([one[column] for one in found]) for column in ("cut", "end")]
        cost, gap = mean(one["flops"] for one in found) / base, max(one["gap"] for one in found)
        print(f"{name:18}{shown[0]:>16}{shown[1]:>16}{cost:8.2f}{gap:8.3f}")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
