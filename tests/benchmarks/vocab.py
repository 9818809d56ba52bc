"""What a smaller vocabulary costs a real model, and what the same parameters cost in width.

    python -m tests.benchmarks.vocab [--model DIR] [--text DIR] [--tasks DIR] [--work DIR] [--sizes 32768 24576 16384]
        [--widths ffn=1264 hidden=513] [--samples 256] [--train TOKENS] [--speed 128x32] [--limit 200]
        [--chunks 24] [--dtype float32] [--tiny]

Tokens are counted on `{domain}_train.jsonl`. Bits per byte are of `{domain}_eval.jsonl`, cut into chunks of 1,500
characters that every tokenizer encodes by itself, after the end-of-text token; in `--dtype` by transformers, not by the
package. The error is that of the paired difference from the source over the chunks. `--widths` cuts neurons or channels
instead. With `--train` every cut is also distilled from the source for so many tokens (100K), by its distributions
alone and with cross-entropy, and trained on the text alone. Every model is made and evaluated by command lines of
`minitron`; WORK keeps what is done, and a second call goes on. The first line says how fast words are counted,
beside tokenising the same text whole; `--speed` times prefill and decoding of the cuts against the source (`minitron
bench`): on a machine that does other work give OMP_NUM_THREADS fewer threads than it has processors.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minitron_cli.cli.common import parse_count
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.data.vocabulary.words import Tally, words_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CHUNK = 1500  # characters


@dataclass(frozen=True)
class Setting:
    """What all models are measured with."""

    model: Path
    text: Path
    tasks: Path | None
    work: Path
    chunks: int
    limit: int
    dtype: str = "float32"  # that the models are evaluated and timed in
    batch: tuple[int, int] = (4, 256)
    samples: int = 256  # that neurons and channels are ranked by

    def files(self, part: str) -> list[Path]:
        return sorted(self.text.glob(f"*_{part}.jsonl"))

    def data(self) -> list[str]:
        return [word for file in self.files("train") for word in ("--data", str(file))]


def minitron(*words: Any) -> str:
    """Run a command line; returns what it printed, and passes its warnings on."""
    done = subprocess.run([sys.executable, "-m", "minitron_cli", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    for line in done.stderr.splitlines():
        if line.startswith("warning: "):
            print(line, file=sys.stderr)
    return done.stdout


def made(setting: Setting, name: str, *words: Any) -> Path:
    """The model that a command line makes, once."""
    place = setting.work / name
    if not (place / "minitron.json").is_file():
        minitron(*words, "-o", place)
    return place


def scores_of(setting: Setting) -> Path:
    """What ranks neurons and channels, measured once."""
    scores = setting.work / f"{setting.model.name}-{setting.samples}.safetensors"
    if not scores.is_file():
        minitron("importance", setting.model, *setting.data(), "--samples", setting.samples, "--seq-len",
                 setting.batch[1], "--dtype", setting.dtype, "-o", scores)  # fmt: skip
    return scores


def chunks(setting: Setting) -> dict[str, list[str]]:
    """The held-out text of every domain in pieces, the first `setting.chunks` of each."""
    found = {}
    for file in setting.files("eval"):
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        pieces = [text[at : at + CHUNK] for text in texts for at in range(0, len(text), CHUNK)]
        found[file.stem.removesuffix("_eval")] = [piece for piece in pieces if len(piece) > CHUNK // 3][
            : setting.chunks
        ]
    return found


@torch.no_grad()
def bits(model: Path, text: dict[str, list[str]], dtype: str) -> dict[str, Any]:
    """Bits, bytes and tokens of every chunk by domain: {domain: [[bits, bytes, tokens], ..]}, and tokens a second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    found: dict[str, Any] = {}
    start, tokens = time.perf_counter(), 0
    for domain, pieces in text.items():
        found[domain] = []
        for piece in pieces:
            ids = tokenizer(piece, add_special_tokens=False).input_ids
            row = torch.tensor([[tokenizer.eos_token_id, *ids]])
            log_probs = loaded(row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            nats = -float(log_probs.gather(-1, row[0, 1:, None]).double().sum())
            found[domain].append([nats / math.log(2), len(piece.encode()), len(ids)])
            tokens += len(ids)
    return {"domains": found, "tokens_per_second": tokens / (time.perf_counter() - start)}


def measured(setting: Setting, model: Path, text: dict[str, list[str]]) -> dict[str, Any]:
    """Bits per byte, LAMBADA and parameters of a model, kept beside the others."""
    kept = setting.work / f"{model.name}.bits-{setting.chunks}-{setting.dtype}.json"
    if not kept.is_file():
        parameters = json.loads(minitron("inspect", model, "--json"))["parameters"]
        kept.write_text(json.dumps(bits(model, text, setting.dtype) | {"parameters": parameters}))
    found = dict(json.loads(kept.read_text()))
    if setting.tasks:
        result = setting.work / f"{model.name}.lambada-{setting.limit}-{setting.dtype}.json"
        if not result.is_file():
            minitron("eval", model, "--tasks", "real_lambada", "--include", setting.tasks, "--limit", setting.limit,
                     "--dtype", setting.dtype, "--no-throughput", "-o", result)  # fmt: skip
        found["lambada"] = next(
            r["value"] for r in json.loads(result.read_text())["rows"] if r["metric"].startswith("acc")
        )
    return found


def row(name: str, found: dict[str, Any], source: dict[str, Any]) -> str:
    """One line of the table: parameters, bits per byte, its change with twice its error, tokens a byte, LAMBADA."""
    mine, theirs = (np.array([c for d in f["domains"].values() for c in d]) for f in (found, source))
    per_byte, before = mine[:, 0].sum() / mine[:, 1].sum(), theirs[:, 0].sum() / theirs[:, 1].sum()
    gaps = (mine[:, 0] - theirs[:, 0]) / theirs[:, 1].mean()
    error = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan
    change, spread = (per_byte / before - 1) * 100, 200 * error / before
    by_domain = ", ".join(
        f"{domain} {(_per_byte(found, domain) / _per_byte(source, domain) - 1) * 100:+.1f}"
        for domain in found["domains"]
    )
    task = f"{found['lambada']:.3f}" if "lambada" in found else "-"
    return (
        f"| {name} | {found['parameters'] / 1e6:.1f}M | {per_byte:.4f} | {change:+.2f}% +-{spread:.2f} | "
        f"{mine[:, 2].sum() / mine[:, 1].sum():.4f} | {task} | {by_domain} |"
    )


def _per_byte(found: dict[str, Any], domain: str) -> float:
    values = np.array(found["domains"][domain])
    return float(values[:, 0].sum() / values[:, 1].sum())


def counting(setting: Setting) -> str:
    """How many bytes of the text a second of one processor counts: by words, and tokenised as a whole."""
    tokenizer = load_tokenizer(setting.model)
    words = words_of(tokenizer)
    texts = [json.loads(line)["text"] for file in setting.files("train") for line in file.read_text().splitlines()]
    size = sum(len(text.encode()) for text in texts)

    def by_words() -> np.ndarray:
        assert words is not None
        tally = Tally(tokenizer, words)
        for text in texts:
            tally.add(text)
        return tally.uses()

    def whole() -> np.ndarray:
        uses = np.zeros(tokenizer.vocab_size, np.int64)
        for start in range(0, len(texts), 1024):
            for found in tokenizer.backend.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False):
                uses += np.bincount(found.ids, minlength=len(uses))
        return uses

    rates, found = [], []
    for count in (by_words, whole):
        start = time.process_time()
        found.append(count())
        rates.append(size / 1e6 / (time.process_time() - start))
    assert (found[0] == found[1]).all(), "the two count the same"
    return (
        f"counting {size / 1e6:.1f} MB: {rates[0]:.1f} MB a processor second by words, {rates[1]:.1f} as a whole, "
        f"{rates[0] / rates[1]:.1f} times"
    )


def compare(
    setting: Setting, sizes: list[int], widths: Sequence[str] = (), tokens: int = 0, speed: str | None = None
) -> None:
    """Make and measure every model, and print the table as it grows."""
    print(counting(setting), flush=True)
    text = chunks(setting)
    print("| model | parameters | bits per byte | change | tokens per byte | LAMBADA | change by domain, % |")
    print("|---|---|---|---|---|---|---|", flush=True)
    source = measured(setting, setting.model, text)
    print(row("source", source, source), flush=True)
    cuts = {size: made(setting, f"vocab-{size}", "prune", setting.model, "--vocab", size, *setting.data())
            for size in sizes}  # fmt: skip
    for size, place in cuts.items():
        print(row(f"vocabulary {size:,}", measured(setting, place, text), source), flush=True)
    students = {f"vocabulary {size:,}": place for size, place in cuts.items()}
    for width in widths:
        flag, _, size = width.partition("=")
        place = made(
            setting, f"{flag}-{size}", "prune", setting.model, f"--{flag}", size, "--scores", scores_of(setting)
        )
        students[f"{flag} {int(size):,}"] = place
        print(row(f"{flag} {int(size):,}", measured(setting, place, text), source), flush=True)
    if speed:
        models = (setting.model, *students.values())
        print(minitron("bench", *models, "--grid", speed, "--dtype", setting.dtype), flush=True)
    rows, length = setting.batch
    steps = tokens // (rows * length)
    distill = ("--teacher", setting.model)
    arms = (
        ("distilled", "distill", distill, "1e-4"),
        ("distilled-ce", "distill", (*distill, "--ce-weight", 1), "2e-4"),
        ("trained", "train", (), "1e-4"),
    )
    for name, place in students.items() if steps else ():
        for how, verb, words, rate in arms:
            output = f"{place.name}-{how}-{steps}"
            taught = made(setting, output, verb, place, *words, *setting.data(), "--steps", steps, "--batch", rows,
                          "--seq-len", length, "--lr", rate)  # fmt: skip
            print(row(f"{name}, {how}, {steps * rows * length / 1e3:.0f}K tokens", measured(setting, taught, text),
                      source), flush=True)  # fmt: skip


def toy(work: Path) -> tuple[Path, Path]:
    """A toy model and a directory of made-up text."""
    from tests.spellers import byte_level, made_text, save
    from tests.toys import make_toy

    model = make_toy("llama", work / "model", vocab_size=448, max_position_embeddings=1024)
    save(byte_level(made_text(200), 448), model)
    (work / "text").mkdir()
    for part, seed in (("train", 1), ("eval", 2)):
        lines = [json.dumps({"text": text}) for text in made_text(40, seed, 300)]
        (work / "text" / f"words_{part}.jsonl").write_text("\n".join(lines) + "\n")
    return model, work / "text"


def tiny(work: Path) -> None:
    """The same on a toy."""
    model, text = toy(work)
    # A pass of the toy takes less than a millisecond. With a thread on each processor every other process that runs
    # there holds it up for a time slice, and it looks up to a hundred times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    setting = Setting(model, text, None, work, 2, 0, batch=(2, 32), samples=8)
    compare(setting, [384], ["ffn=56"], 64, "8x2")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The model, its text and tasks, and where what is made of them is kept."""
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path, default=SHARED / "text")
    parser.add_argument("--tasks", type=Path, default=SHARED / "real_tasks")
    parser.add_argument("--work", type=Path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32768, 24576, 16384])
    parser.add_argument("--widths", nargs="+", default=[])
    parser.add_argument("--train", type=parse_count, default=0)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--speed")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.tiny or args.model is None or not args.text.is_dir():
            if not args.tiny:
                print("no --model, or no text: the toy instead")
            return tiny(Path(temporary))
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        tasks = args.tasks if args.tasks.is_dir() else None
        setting = Setting(args.model, args.text, tasks, work, args.chunks, args.limit, args.dtype,
                          samples=args.samples)  # fmt: skip
        compare(setting, args.sizes, args.widths, args.train, args.speed)


if __name__ == "__main__":
    main()
