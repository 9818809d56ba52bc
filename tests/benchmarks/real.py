"""Evidence for the defaults, on a real model: which score, which depth metric, which cut, which data, which loss.

    python -m tests.benchmarks.real [TABLE ...] [--model DIR] [--text DIR] [--work DIR] [--seeds 3]
        [--steps 120] [--rates 2.5e-4 5e-4 1e-3] [--dtype bfloat16] [--show] [--tiny]

The text directory holds `{domain}_train.jsonl` and `{domain}_eval.jsonl`. Tables: criterion, rotation,
depth, shape, calibration, loss, recipe. A cell is one cut of the model: its loss right after the cut and, with
`--steps`, after equal training.

Every step of a cell is a command line of `minitron`, kept with its result in WORK/DTYPE/results.jsonl; a second call
goes on where one was stopped, and `--show` only prints. A loss is the mean over held-out windows (nats per token,
computed here with transformers and not by the package); its error is that of the paired difference from the source over
the windows. A seed draws the calibration samples and the order of the data. Where students are trained, the learning
rate of an arm is the best of `--rates` on seed 0, so that no arm wins by its rate. `--dtype` is what all of it
computes in: bfloat16 is 2 to 4 times faster on processors that multiply it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.real_tables import TABLES, Arm, Cut, applies, sizes

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Setting:
    """What all cells share."""

    model: Path
    text: Path
    work: Path
    seeds: int
    steps: int
    rates: tuple[float, ...]
    samples: int = 256
    seq_len: int = 256
    windows: int = 4  # of `eval_len` tokens, of every domain
    eval_len: int = 512
    batch: int = 8
    dtype: str = "float32"
    importance: tuple[str, ...] = ()
    cuts: int | None = None  # how many of each table (None: all)

    def label(self, cut: Cut) -> str:
        return ", ".join(f"{flag} {size}" for flag, size in self.sizes(cut).items())

    def sizes(self, cut: Cut) -> dict[str, int]:
        return sizes(cut, json.loads((self.model / "config.json").read_text()))

    def domains(self, part: str) -> list[Path]:
        return sorted(self.text.glob(f"*_{part}.jsonl"))


@dataclass
class Results:
    """What was measured, by cell; appended to a file as it comes."""

    file: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.is_file():
            for line in self.file.read_text().splitlines():
                self.known[json.loads(line)["key"]] = json.loads(line)

    def add(self, key: str, commands: Sequence[str], losses: np.ndarray) -> None:
        self.known[key] = {"key": key, "commands": list(commands), "losses": [round(float(x), 6) for x in losses]}
        with self.file.open("a") as stream:
            stream.write(json.dumps(self.known[key]) + "\n")

    def losses(self, key: str) -> np.ndarray | None:
        return np.array(self.known[key]["losses"]) if key in self.known else None


def minitron(*words: object, log: list[str]) -> None:
    """Run one command line in a process of its own, and note it."""
    log.append(" ".join(map(str, ("minitron", *words))))
    line = [sys.executable, "-m", "minitron_cli", *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{log[-1]}\n{done.stderr}")


def held_out(setting: Setting, model: Path) -> np.ndarray:
    """Nats per token of each held-out window: the first windows of every domain's documents, joined by EOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, setting.dtype))
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    found = []
    with torch.inference_mode():
        for file in setting.domains("eval"):
            ids: list[int] = []
            for line in file.read_text().splitlines():
                ids += [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
            for i in range(min(setting.windows, len(ids) // setting.eval_len)):
                window = torch.tensor([ids[i * setting.eval_len : (i + 1) * setting.eval_len]])
                logits = network(input_ids=window, use_cache=False).logits[0, :-1].float()
                found.append(float(torch.nn.functional.cross_entropy(logits, window[0, 1:])))
    return np.array(found)


def data(setting: Setting, arm: Arm) -> list[object]:
    """The training text of the domains that an arm is calibrated on."""
    files = [f for f in setting.domains("train") if not arm.domains or f.stem.removesuffix("_train") in arm.domains]
    return [word for file in files for word in ("--data", file)]


def scores_for(setting: Setting, arm: Arm, seed: int, log: list[str]) -> Path:
    """The scores file of an arm, measured unless it is there. Scores with Gram matrices serve arms without, too."""
    words = ["--samples", arm.samples or setting.samples, "--seq-len", setting.seq_len, "--seed", seed, *arm.importance,
             *setting.importance]  # fmt: skip
    name = "-".join(str(w).strip("-") for w in (*words, *arm.domains)).replace("/", "_")
    file = setting.work / "scores" / f"{name}.safetensors"
    line = ["importance", setting.model, *data(setting, arm), *words, "--dtype", setting.dtype, "-o", file]
    if file.exists():
        log.append(" ".join(map(str, ("minitron", *line))))
    else:
        minitron(*line, log=log)
    return file


def pruned(setting: Setting, arm: Arm, cut: Cut, seed: int, folder: Path, log: list[str]) -> Path:
    output = folder / "pruned"
    words = [word for flag, size in setting.sizes(cut).items() for word in (f"--{flag}", size)]
    minitron("prune", setting.model, "--scores", scores_for(setting, arm, seed, log), *words, *arm.prune, "-o", output,
             log=log)  # fmt: skip
    return output


def distilled(setting: Setting, arm: Arm, student: Path, rate: float, seed: int, folder: Path, log: list[str]) -> Path:
    output = folder / "student"
    minitron("distill", student, "--teacher", setting.model, *data(setting, Arm("")), "--steps", setting.steps,
             "--batch", setting.batch, "--seq-len", setting.seq_len, "--lr", rate, "--min-lr", rate / 10, "--warmup",
             setting.steps // 10, "--weight-decay", 0, "--seed", seed, "--dtype", setting.dtype, *arm.distill,
             "-o", output, log=log)  # fmt: skip
    return output


def measure(setting: Setting, results: Results, table: str, arm: Arm, cut: Cut, seed: int) -> None:
    """One cell: the loss after the cut, and after training where that was asked for."""
    after_cut = f"{table} | {arm.name} | {setting.label(cut)} | seed {seed}"
    rates = setting.rates if seed == 0 else (best_rate(setting, results, after_cut.replace(f"seed {seed}", "seed 0")),)
    wanted = [f"{after_cut} | steps {setting.steps} lr {rate:g}" for rate in rates] if setting.steps else []
    if all(results.losses(key) is not None for key in (after_cut, *wanted)):
        return
    with tempfile.TemporaryDirectory(dir=setting.work) as name:
        log: list[str] = []
        student = pruned(setting, arm, cut, seed, Path(name), log)
        if results.losses(after_cut) is None:
            results.add(after_cut, log, held_out(setting, student))
        for rate, key in zip(rates, wanted):
            if results.losses(key) is None:
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    lines = list(log)
                    trained = distilled(setting, arm, student, rate, seed, Path(folder), lines)
                    results.add(key, lines, held_out(setting, trained))


def best_rate(setting: Setting, results: Results, cell: str) -> float:
    """The rate of `--rates` after which a cell's student has the lowest loss."""
    found = {rate: results.losses(f"{cell} | steps {setting.steps} lr {rate:g}") for rate in setting.rates}
    means = {rate: float(losses.mean()) for rate, losses in found.items() if losses is not None}
    return min(means, key=lambda rate: means[rate])


def cell_text(setting: Setting, results: Results, cell: str, steps: int) -> str:
    """Mean over the seeds, plus or minus the standard error of the difference from the source over the windows."""
    source = results.losses("source")
    found = []
    for seed in range(setting.seeds):
        key = f"{cell} | seed {seed}"
        if steps:
            if results.losses(f"{cell} | seed 0 | steps {steps} lr {setting.rates[0]:g}") is None:
                continue
            key += f" | steps {steps} lr {best_rate(setting, results, f'{cell} | seed 0'):g}"
        losses = results.losses(key)
        if losses is not None:
            found.append(losses)
    if not found or source is None:
        return ""
    difference = np.mean(found, axis=0) - source
    return f"{np.mean(found):.3f} ± {difference.std(ddof=1) / len(difference) ** 0.5:.3f}"


def show(setting: Setting, results: Results, names: Iterable[str]) -> None:
    """The tables as Markdown: an arm a row, a cut a column; the loss after the cut and, after an arrow, trained."""
    source = results.losses("source")
    if source is not None:
        print(f"source: {source.mean():.3f} nats per token on {len(source)} windows of {setting.eval_len}\n")
    for name in names:
        table = TABLES[name]
        labels = [setting.label(cut) for cut in table.cuts[: setting.cuts]]
        print(f"{name}: {table.about}\n\n| arm | {' | '.join(labels)} |\n|---{'|---' * len(labels)}|")
        for arm in table.arms:
            row = []
            for cut in labels:
                cell = f"{name} | {arm.name} | {cut}"
                texts = [cell_text(setting, results, cell, steps) for steps in dict.fromkeys((0, setting.steps))]
                row.append(" -> ".join(text for text in texts if text))
            print(f"| {arm.name} | " + " | ".join(row) + " |")
        print(flush=True)


def cells(setting: Setting, names: Sequence[str]) -> Iterator[tuple[str, Arm, Cut, int]]:
    """Seed by seed, so that a call that is stopped leaves whole tables of few seeds."""
    for seed in range(setting.seeds):
        for name in names:
            for cut in TABLES[name].cuts[: setting.cuts]:
                for arm in TABLES[name].arms:
                    if applies(arm, cut):
                        yield name, arm, cut, seed


def tiny(work: Path) -> Setting:
    """A model of a few thousand parameters and its text, to see that everything runs."""
    from tests.toys import make_toy

    make_toy("llama", work / "model", hidden_size=384, num_hidden_layers=6, intermediate_size=192)
    (work / "text").mkdir()
    for domain in ("letters", "digits"):
        for part in ("train", "eval"):
            lines = [json.dumps({"text": f"{domain} of {part} {i} " * 20, "domain": domain}) for i in range(40)]
            (work / "text" / f"{domain}_{part}.jsonl").write_text("\n".join(lines) + "\n")
    return Setting(
        work / "model",
        work / "text",
        work,
        1,
        1,
        (1e-3,),
        samples=8,
        seq_len=32,
        windows=1,
        eval_len=32,
        batch=2,
        importance=("--allow-fewer",),
        cuts=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--model", type=Path, default=Path("runs/SmolLM2-135M"))
    parser.add_argument("--text", type=Path, default=SHARED / "text")
    parser.add_argument("--work", type=Path, default=Path("runs/real-evidence"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.5e-4, 5e-4, 1e-3])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show", action="store_true", help="print what was measured and stop")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if unknown := sorted(set(given.tables) - TABLES.keys()):
        parser.error(f"unknown tables {', '.join(unknown)}; known: {', '.join(TABLES)}")
    names = given.tables or list(TABLES)
    with tempfile.TemporaryDirectory() as temporary:
        if given.tiny:
            run(tiny(Path(temporary)), names, measure_all=True)
            return
        if not (given.model.is_dir() and given.text.is_dir()):
            print(f"skipped: no model at {given.model} or no text at {given.text} (`make real` makes the model)")
            return
        rates = tuple(given.rates)
        setting = Setting(
            given.model, given.text, given.work / given.dtype, given.seeds, given.steps, rates, dtype=given.dtype
        )
        run(setting, names, measure_all=not given.show)


def run(setting: Setting, names: Sequence[str], measure_all: bool) -> None:
    (setting.work / "scores").mkdir(parents=True, exist_ok=True)
    results = Results(setting.work / "results.jsonl")
    if measure_all:
        if results.losses("source") is None:
            results.add("source", (), held_out(setting, setting.model))
        for name, arm, cut, seed in cells(setting, names):
            print(f"{name}: {arm.name}, {cut}, seed {seed}", file=sys.stderr, flush=True)
            measure(setting, results, name, arm, cut, seed)
    show(setting, results, names)


if __name__ == "__main__":
    main()
