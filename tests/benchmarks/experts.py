"""Half of the experts of a mixture trained on the toy world's four domains: what ranks them, merging or dropping.

    python -m tests.benchmarks.experts [--seeds 3] [--steps 40] [--teacher-steps 400] [-o FOLDER]

A Mixtral of eight experts, two to a token, is trained from scratch on equal shares of the domains. Half of its experts
go: by each score, by merging, and by calibration on one domain alone (the better half for that domain); some with what
stays refitted to the source's output, all experts of a layer together or one at a time. The figures are
excess losses over the teacher on held-out text of each domain, nats per token: right after the cut, and after --steps
steps of distillation on the same rows of all domains, mean and spread over seeds (orders of the data); for some also
with the routers alone trained. With -o what was made before is found again.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.hf.readers import EXPERT_ROUTING
from minitron_cli.importance.aggregate import EXPERT_SCORES
from minitron_cli.prune.request import MERGES
from tests.benchmarks.family import minitron
from tests.benchmarks.measure import parse
from tests.benchmarks.mix import CHARACTERS, NAMES, files, losses, show, write_text

EXPERTS, ACTIVE = 8, 2
_SIZES = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 80, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 16,
    "num_local_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "output_router_logits": False,
}  # fmt: skip
_DENSE = ("mlp_bias", "attention_bias")  # of the Llama that the toy world describes
TRAINING = ["--batch", 16, "--seq-len", 128]
REFITTED = ("frequency", "reap", "damage", "m-smoe", "nearest", "cluster")
TRAINED = (*REFITTED, *(f"{name}, refitted" for name in ("frequency", "damage", "m-smoe", "nearest", "cluster")))
ROUTERS_TRAINED = ("frequency", "damage", "m-smoe")


def prepare(folder: Path, teacher_steps: int) -> Path:
    """The world and its mixture of experts; what is there already is kept."""
    large, start = folder / "large", folder / "large-init"
    if not (folder / "world").exists():
        minitron("toy", folder / "world")
        write_text(folder, CHARACTERS)
    if not start.exists():
        shutil.copytree(folder / "world" / "teacher-init", start)
        config = json.loads((start / "config.json").read_text())
        config = {key: value for key, value in config.items() if key not in _DENSE} | _SIZES
        (start / "config.json").write_text(json.dumps(config))
    if read_manifest(large) is None:
        minitron("train", start, "--from-scratch", *files(folder, "train", "--data"), *TRAINING, "--lr", "4e-3",
                 "--min-lr", "4e-4", "--steps", teacher_steps, "-o", large)  # fmt: skip
    return large


def measure(folder: Path, large: Path, name: str, data: list[object], score: str, samples: int) -> Path:
    """Scores of the experts on some text."""
    output = folder / f"{name}.safetensors"
    minitron("importance", large, *data, "--samples", samples, "--seq-len", 128, "--expert-damage", "--expert-score",
             score, "-o", output)  # fmt: skip
    return output


def cut(folder: Path, large: Path, name: str, scores: Path, merge: str = "none", *more: object) -> Path:
    output = folder / f"cut-{name}"
    if read_manifest(output) is None:
        minitron("prune", large, "--scores", scores, "--experts", EXPERTS // 2, "--expert-merge", merge, *more,
                 "-o", output)  # fmt: skip
    return output


def distill(folder: Path, large: Path, small: Path, seed: int, steps: int, only: str | None = None) -> Path:
    """The student trained whole, or `only` the weights of that name."""
    output = folder / f"{small.name}-{seed}{'' if only is None else f'-{only}'}"
    restricted = [] if only is None else ["--train-only", only]
    if read_manifest(output) is None:
        minitron("distill", small, "--teacher", large, *files(folder, "train", "--data"), *TRAINING, "--lr", "1e-3",
                 "--min-lr", "1e-4", "--warmup", 4, "--steps", steps, "--seed", seed, *restricted,
                 "-o", output)  # fmt: skip
    return output


def specialised(folder: Path, large: Path, samples: int) -> None:
    """How the domains share the experts: of each layer, the distance between the usage of two domains (0 to 1)."""
    usage = []
    for name in NAMES:
        file = measure(folder, large, f"on-{name}", ["--data", folder / "train" / f"{name}.jsonl"], "reap", samples)
        tokens = read_scores(file)[1][EXPERT_ROUTING][:, 0, 0].sum(0)
        usage.append(tokens / tokens.sum(-1, keepdims=True))
    apart = [np.abs(a - b).sum(-1) / 2 for i, a in enumerate(usage) for b in usage[:i]]
    print(f"total variation between the routing of two domains, by layer: {np.round(np.mean(apart, 0), 2).tolist()}")
    mean = np.mean(usage, 0)
    least, most = mean.min(1).round(3).tolist(), mean.max(1).round(3).tolist()
    print(f"share of the least and of the most used expert: {least}, {most}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path)
    args = parse(parser, seeds=1, steps=6, teacher_steps=8, samples=16)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        large = prepare(folder, args.teacher_steps)
        specialised(folder, large, args.samples)
        every, reference = files(folder, "train", "--data"), losses(folder, large)
        print(f"{'':26}" + "".join(f"{name:>12}" for name in NAMES) + f"{'largest':>12}{'mean':>12}")
        show(f"{'the teacher':26}", reference)
        students = {}
        on_text = (*every, "--samples", args.samples, "--seq-len", 128, "--expert-refit")
        for name in (*EXPERT_SCORES, *MERGES[1:]):
            merge, score = ("none", name) if name in EXPERT_SCORES else (name, "frequency")
            scores = measure(folder, large, "all", every, score, args.samples)
            students[name] = cut(folder, large, name, scores, merge)
            for together, how in (("all", "refitted"), (1, "one at a time")) if name in REFITTED else ():
                students[f"{name}, {how}"] = cut(
                    folder, large, f"{name}-refit-{together}", scores, merge, *on_text, together
                )
        for name in NAMES:
            students[f"on {name}"] = cut(folder, large, f"on-{name}", folder / f"on-{name}.safetensors")
        for name, student in students.items():
            show(f"{name:26}", losses(folder, student) - reference)
        whole, routers = [(name, None) for name in TRAINED], [(name, "mlp.gate") for name in ROUTERS_TRAINED]
        for name, only in (*whole, *routers):
            done = [distill(folder, large, students[name], seed, args.steps, only) for seed in range(args.seeds)]
            excess = np.array([losses(folder, model) - reference for model in done])
            show(f"{name + (', trained' if only is None else ', routers'):26}", excess.mean(0))
            print(f"{'  of each seed':26}" + "".join(f"{value:12.4f}" for value in excess.mean(1)), flush=True)


if __name__ == "__main__":
    main()
