"""Other pruning tools against ours: the same model, cut, calibration text and machine.

    python -m tests.benchmarks.peers [--model DIR] [--text DIR] [--work DIR] [--steps 0] [--lr 5e-4] [--show] [--tiny]

The peers are those of optipfair, torch-pruning and mergekit that are installed; a row is left out, and said so, where
its package is not. Cuts: the FFN to three quarters and the layers to four fifths, which they all can make or refuse.
Every arm runs in a process of its own, from a checkpoint on disk to a checkpoint on disk: processor seconds, peak
memory, and nats per token of the result on held-out windows (see `real.held_out`). With `--steps`, all students are
then distilled alike, by our trainer. Results are kept in WORK/results.jsonl; a second call goes on where one
was stopped.

optipfair ranks GLU neurons by peak-to-peak weights, alone or with activations ("hybrid"), and layers by cosine or from
the end; torch-pruning ranks neurons by the magnitude or the first-order Taylor term of their weights (LLM-Pruner's
criterion); mergekit copies the layers that it is told.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli.checkpoint.provenance import read_plan
from tests.benchmarks.prune import timed
from tests.benchmarks.real import SHARED, Results, Setting, held_out, tiny
from tests.benchmarks.real_tables import GRAM, RESIDUAL, Arm, cut_of

FFN, DEPTH = cut_of(ffn="3/4"), cut_of(layers="4/5")


@dataclass(frozen=True)
class Peer:
    """A tool's way to make one cut: the package it needs, and a function of (model, token rows, size, output)."""

    name: str
    package: str
    cut: Mapping[str, Any]
    make: Callable[[Path, np.ndarray, int, Path], None]


def _loaded(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def _saved(network: Any, model: Path, output: Path) -> None:
    from transformers import AutoTokenizer

    network.save_pretrained(output)
    AutoTokenizer.from_pretrained(model).save_pretrained(output)


def _batches(rows: np.ndarray) -> list[dict[str, Any]]:
    import torch

    ids = torch.from_numpy(rows)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(8)]


def _optipfair_ffn(hybrid: bool) -> Callable[[Path, np.ndarray, int, Path], None]:
    def make(model: Path, rows: np.ndarray, size: int, output: Path) -> None:
        from optipfair import prune_model

        network = _loaded(model)
        share = 100 * (1 - size / network.config.intermediate_size)
        calibration = _batches(rows) if hybrid else None
        network = prune_model(network, "MLP_GLU", "MAW", share, dataloader=calibration, show_progress=False)
        _saved(network, model, output)

    return make


def _optipfair_depth(ranked: bool) -> Callable[[Path, np.ndarray, int, Path], None]:
    def make(model: Path, rows: np.ndarray, size: int, output: Path) -> None:
        from optipfair import analyze_layer_importance, prune_model

        network = _loaded(model)
        count = network.config.num_hidden_layers - size
        chosen: dict[str, Any] = {"num_layers_to_remove": count}
        if ranked:
            scores = analyze_layer_importance(network, _batches(rows), show_progress=False)
            chosen = {"layer_indices": sorted(sorted(scores, key=lambda layer: scores[layer])[:count])}
        network = prune_model(network, "DEPTH", **chosen, show_progress=False)
        _saved(network, model, output)

    return make


def _torch_pruning_ffn(taylor: bool) -> Callable[[Path, np.ndarray, int, Path], None]:
    def make(model: Path, rows: np.ndarray, size: int, output: Path) -> None:
        import torch
        import torch_pruning as tp

        network = _loaded(model)
        network.config.use_cache = False
        layers = network.model.layers
        share = 1 - size / network.config.intermediate_size
        roots = {layer.mlp.gate_proj: share for layer in layers}
        others = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m not in roots]
        if taylor:
            for batch in _batches(rows):
                network(**batch, labels=batch["input_ids"]).loss.backward()
        pruner = tp.pruner.BasePruner(
            network,
            example_inputs=torch.from_numpy(rows[:1, :16]),
            importance=tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=roots,
            ignored_layers=[m for m in others if not any(m is layer.mlp.up_proj for layer in layers)],
            output_transform=lambda out: out.logits,
        )
        pruner.step()
        network.zero_grad(set_to_none=True)
        network.config.intermediate_size = layers[0].mlp.gate_proj.out_features
        _saved(network, model, output)

    return make


def _mergekit_depth(model: Path, rows: np.ndarray, size: int, output: Path) -> None:
    """The layers that our block influence keeps: mergekit has no choice of its own."""
    plan = read_plan(output.parent / "ours")
    assert plan is not None
    ranges = [[int(layer), int(layer) + 1] for layer in plan.kept["layer"]]
    slices = [{"sources": [{"model": str(model), "layer_range": one}]} for one in ranges]
    recipe = output.parent / "mergekit.yaml"
    recipe.write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "float32"}))
    line = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(recipe), str(output)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


PEERS = (
    Peer("optipfair, weights", "optipfair", FFN, _optipfair_ffn(hybrid=False)),
    Peer("optipfair, hybrid", "optipfair", FFN, _optipfair_ffn(hybrid=True)),
    Peer("torch-pruning, magnitude", "torch_pruning", FFN, _torch_pruning_ffn(taylor=False)),
    Peer("torch-pruning, Taylor", "torch_pruning", FFN, _torch_pruning_ffn(taylor=True)),
    Peer("optipfair, last layers", "optipfair", DEPTH, _optipfair_depth(ranked=False)),
    Peer("optipfair, by cosine", "optipfair", DEPTH, _optipfair_depth(ranked=True)),
    Peer("mergekit, our layers", "mergekit", DEPTH, _mergekit_depth),
)
OURS = (
    (Arm("minitron, plain"), FFN),
    (Arm("minitron, compensated by residual", GRAM, RESIDUAL), FFN),
    (Arm("minitron, block influence"), DEPTH),
)


def rows_of(setting: Setting) -> np.ndarray:
    """Calibration rows (samples, seq_len) of all domains alike, for the tools that take token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    domains = setting.domains("train")
    found = []
    for file in domains:
        ids: list[int] = []
        for line in file.read_text().splitlines():
            if len(ids) >= setting.seq_len * -(-setting.samples // len(domains)):
                break
            ids += [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
        whole = len(ids) // setting.seq_len
        found.append(np.array(ids[: whole * setting.seq_len]).reshape(whole, setting.seq_len))
    return np.concatenate(found)[: setting.samples]


def ours(setting: Setting, arm: Arm, cut: Mapping[str, Any], output: Path) -> list[list[str]]:
    """The command lines of one of our arms."""
    minitron = [sys.executable, "-m", "minitron_cli"]
    scores = str(output.parent / "scores.safetensors")
    data = [word for file in setting.domains("train") for word in ("--data", str(file))]
    sizes = [str(word) for flag, size in setting.sizes(cut).items() for word in (f"--{flag}", size)]
    measured = ["--samples", str(setting.samples), "--seq-len", str(setting.seq_len), "--dtype", "float32"]
    return [
        [*minitron, "importance", str(setting.model), *data, *measured, *arm.importance, *setting.importance,
         "-o", scores],
        [*minitron, "prune", str(setting.model), "--scores", scores, *sizes, *arm.prune, "-o", str(output)],
    ]  # fmt: skip


def theirs(setting: Setting, index: int, size: int, output: Path) -> list[list[str]]:
    rows = output.parent / "rows.npy"
    np.save(rows, rows_of(setting))
    code = "import sys; from tests.benchmarks import peers; peers.make(*sys.argv[1:])"
    return [[sys.executable, "-c", code, str(index), str(setting.model), str(rows), str(size), str(output)]]


def make(index: str, model: str, rows: str, size: str, output: str) -> None:
    """One peer's cut, in a process of its own."""
    PEERS[int(index)].make(Path(model), np.load(rows), int(size), Path(output))


def run(setting: Setting, results: Results, rate: float) -> None:
    if results.losses("source") is None:
        results.add("source", (), held_out(setting, setting.model))
    for cut in (FFN, DEPTH):
        ((_, size),) = setting.sizes(cut).items()
        with tempfile.TemporaryDirectory(dir=setting.work) as name:
            for arm, mine in OURS:
                if mine is cut:
                    output = Path(name) / ("ours" if cut is DEPTH else arm.name.replace(" ", "-"))
                    one(setting, results, arm.name, cut, ours(setting, arm, cut, output), output, rate)
            for index, peer in enumerate(PEERS):
                if peer.cut is cut and find_spec(peer.package):
                    output = Path(name) / f"peer-{index}"
                    one(setting, results, peer.name, cut, theirs(setting, index, size, output), output, rate)


def one(
    setting: Setting, results: Results, name: str, cut: Mapping[str, Any], lines: Sequence[list[str]], output: Path,
    rate: float,
) -> None:  # fmt: skip
    """Make one student, unless its result is there; the cost of all its command lines is kept beside its loss."""
    key = f"{name} | {setting.label(cut)}"
    trained = f"{key} | steps {setting.steps}"
    wanted = [key, *([trained] if setting.steps else [])]
    if all(results.losses(k) is not None for k in wanted) and cut is not DEPTH:
        return
    costs = [timed(line) for line in lines]
    seconds, peak = sum(c[2] for c in costs), max(c[1] for c in costs)
    if results.losses(key) is None:
        results.add(key, [f"{seconds:.0f} CPU s, {peak / 1e9:.2f} GB"], held_out(setting, output))
    if setting.steps and results.losses(trained) is None:
        student = output.with_name(f"{output.name}-student")
        data = [word for file in setting.domains("train") for word in ("--data", str(file))]
        line = ["distill", str(output), "--teacher", str(setting.model), *data, "--steps", str(setting.steps),
                "--batch", str(setting.batch), "--seq-len", str(setting.seq_len), "--lr", f"{rate:g}", "--warmup",
                str(setting.steps // 10), "-o", str(student)]  # fmt: skip
        subprocess.run([sys.executable, "-m", "minitron_cli", *line], check=True, stdout=subprocess.DEVNULL)
        results.add(trained, [" ".join(line)], held_out(setting, student))


def show(setting: Setting, results: Results) -> None:
    source = results.losses("source")
    if source is not None:
        print(f"source: {source.mean():.3f} nats per token on {len(source)} windows of {setting.eval_len}\n")
    for cut in (FFN, DEPTH):
        print(f"| {setting.label(cut)} | nats per token | after training | cost |\n|---|---|---|---|")
        for name in [*(arm.name for arm, mine in OURS if mine is cut), *(p.name for p in PEERS if p.cut is cut)]:
            key = f"{name} | {setting.label(cut)}"
            found, after = results.losses(key), results.losses(f"{key} | steps {setting.steps}")
            if found is not None:
                cells = [f"{found.mean():.3f}", f"{after.mean():.3f}" if after is not None else ""]
                print(f"| {name} | {' | '.join(cells)} | {results.known[key]['commands'][0]} |")
        print(flush=True)
    for package in sorted({p.package for p in PEERS if not find_spec(p.package)}):
        print(f"left out: {package} is not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/SmolLM2-135M"))
    parser.add_argument("--text", type=Path, default=SHARED / "text")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--show", action="store_true", help="print what was measured and stop")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if given.tiny:
            setting = tiny(Path(temporary))
        elif given.model.is_dir() and given.text.is_dir():
            setting = Setting(given.model, given.text, given.work, 1, given.steps, ())
        else:
            print(f"skipped: no model at {given.model} or no text at {given.text} (`make real` makes the model)")
            return
        setting.work.mkdir(parents=True, exist_ok=True)
        results = Results(setting.work / "results.jsonl")
        if not given.show:
            run(setting, results, given.lr)
        show(setting, results)


if __name__ == "__main__":
    main()
