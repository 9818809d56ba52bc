"""The figures on the page against the files of the run, read anew by other means."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from minitron_cli.report import text
from tests.report.fake_recipe import ACCURACY, LOSS, RECIPE, SKILLS, SPEED, STEPS, TOKENS_PER_STEP
from tests.report.fake_results import CHANCE, MACHINE
from tests.report.reading import Page

# Each training with the models that come from it.
DESCENDANTS = {
    "large": set(LOSS),
    "middle": {"middle", "small-pruned", "small"},
    "small": {"small"},
}


def _elements(file: Path, without_vocab: bool = False) -> int:
    """Parameters of a checkpoint, counted from its tensors."""
    with safe_open(file, framework="numpy") as stream:
        names = [n for n in stream.keys() if not (without_vocab and ("embed" in n or "lm_head" in n))]  # noqa: SIM118
        return sum(int(np.prod(stream.get_slice(name).get_shape())) for name in names)


@pytest.mark.parametrize("name", LOSS)
def test_the_family_table_says_what_the_files_say(page: Page, fake_run: Path, name: str) -> None:
    row = next(r for r in page.table("Size, quality, speed").values() if r[0].split()[0] == name)
    parameters, largest = (_elements(fake_run / n / "model.safetensors") for n in (name, "large"))
    assert row[1] == f"{parameters:,} {parameters / largest:.1%}"
    assert row[2] == f"{_elements(fake_run / name / 'model.safetensors', without_vocab=True):,}"
    above = (ACCURACY[name] - CHANCE) / (ACCURACY["large"] - CHANCE)
    if name == "large":
        assert (row[4], row[5]) == (f"{LOSS[name]:.3f}", f"{ACCURACY[name]:.1%}")
    else:
        assert row[4] == f"{LOSS[name]:.3f} {LOSS[name] - LOSS['large']:+.3f} ± {1.96 * 0.004:.3f}"
        kept = f"{above:.1%} kept" if above > 0 else "at or below chance"
        assert row[5] == f"{ACCURACY[name]:.1%} {kept}"
    assert row[6] == f"{SPEED[name]:,.0f} {SPEED[name] / SPEED['large']:.2f}×"
    line = [step for step, models in DESCENDANTS.items() if name in models]
    assert row[7].split()[0] == text.count(sum(STEPS[step] for step in line) * TOKENS_PER_STEP)
    if name in STEPS and name != "large":
        assert f"{text.count(STEPS[name] * TOKENS_PER_STEP)} its own" in row[7]


def test_the_evaluation_table_says_what_the_results_say(page: Page, fake_run: Path) -> None:
    found = json.loads((fake_run / "figures.json").read_text())
    header = page.tables[next(c for c in page.tables if c.startswith("Score ±"))][0]
    table = {key.split(",")[0]: row for key, row in page.table("Score ±").items()}
    assert header[1:] == list(LOSS)
    for row in found["rows"]:
        cell = table[row["task"]][header.index(row["model"])]
        assert cell.startswith(f"{row['value']:.4f} ± {row['stderr']:.4f}")
        if row["comparison"]:
            p = row["comparison"]["p_value"]
            kept = f"{row['kept']:.1%} kept" if row["kept"] > 0 else "at or below chance"
            assert f"{kept} p {'< 0.0001' if p < 1e-4 else f'= {p:.2f}'}" in cell
        else:
            assert row["model"] == "large"
    assert set(table) == set(SKILLS)


def test_losses_per_domain(page: Page, fake_run: Path) -> None:
    found = json.loads((fake_run / "figures.json").read_text())
    table = page.table("Loss in nats per token")
    for domain, words in (("stories", "stories"), ("arithmetic", "arithmetic"), ("all", "all text")):
        row = next(r for key, r in table.items() if key.startswith(words))
        for model, cell in zip(found["models"], row[1:], strict=True):
            figures = model["losses"][domain]
            shown = [f"{figures['nats_per_token']:.4f}"]
            if figures["difference"]:
                shown.append(f"{figures['difference']['difference']:+.4f} ± {1.96 * 0.004:.4f}")
            assert cell.startswith(" ".join([*shown, f"{figures['bits_per_byte']:.4f} bits/byte"]))


@pytest.mark.parametrize("name", STEPS)
def test_training_figures_are_those_of_the_metrics(page: Page, fake_run: Path, name: str) -> None:
    lines = [json.loads(line) for line in (fake_run / name / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval_ce" in line]
    table = page.table(f"Held-out text during the training of {name}")
    assert len(table) == len(evaluated)
    for line in evaluated:
        row = table[f"{line['step']:,}"]
        assert row[1] == text.count(line["tokens"])
        assert row[3] == f"{line['eval_ce']:.4f}"
    # An evaluation is written without FLOPs: they are those of the step of the same number.
    last = next(line for line in lines if line["step"] == STEPS[name] and "flops" in line)
    assert table[str(STEPS[name])][2] == text.flops(last["flops"])
    speeds = sorted(line["tokens_per_second"] for line in lines if "loss" in line)
    middle = (speeds[(len(speeds) - 1) // 2] + speeds[len(speeds) // 2]) / 2
    assert f"{middle:,.0f} tokens/s on Train GPU" in page.sections["training"]


def test_the_teachers_line_stands_at_its_last_held_out_loss(page: Page, fake_run: Path) -> None:
    lines = (fake_run / "large" / "run" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "eval_ce" in line][-1]["eval_ce"]
    # Two comparisons in two widths, and the losses of two students.
    assert page.sections["training"].count(f"teacher: large, {last:.3f}") == 6
    assert f"So large has {last:.3f} here and {LOSS['large']:.3f} in the evaluation" in page.sections["training"]


def test_kept_shares_from_the_indices_and_the_scores(page: Page, fake_run: Path) -> None:
    with safe_open(fake_run / "small-pruned" / "kept_indices.safetensors", framework="numpy") as stream:
        kept = {axis: stream.get_tensor(axis) for axis in stream.keys()}  # noqa: SIM118
    with safe_open(fake_run / "scores-middle.safetensors", framework="numpy") as stream:
        scores = {axis: stream.get_tensor(axis) for axis in ("hidden", "ffn", "head")}
    table = page.table("What small-pruned kept")
    hidden = scores["hidden"][kept["hidden"]].sum() / scores["hidden"].sum()
    assert table["hidden channels"] == ["hidden channels", "36", "24", "66.7%", f"{hidden:.1%}", "–"]
    shares = [scores["ffn"][layer, index].sum() / scores["ffn"][layer].sum() for layer, index in enumerate(kept["ffn"])]
    assert table["MLP neurons"][3:] == ["55.6%", f"{np.mean(shares):.1%}", f"{min(shares):.1%} – {max(shares):.1%}"]
    own = page.table("Importance of MLP neurons that small-pruned kept")
    assert [own[f"layer {i}"][1] for i in range(6)] == [f"{share:.1%}" for share in shares]


def test_dropped_layers_are_named(page: Page, fake_run: Path) -> None:
    with safe_open(fake_run / "shallow-pruned" / "kept_indices.safetensors", framework="numpy") as stream:
        kept = stream.get_tensor("layer").tolist()
    words = page.sections["kept"]
    shown = re.search(r"Kept layers: ([\d–, ]+)\. Dropped: ([\d–, ]+)\.", words)
    assert shown
    assert _spread(shown[1]) == kept
    assert _spread(shown[2]) == sorted(set(range(6)) - set(kept))


def _spread(words: str) -> list[int]:
    """ "0–2, 5" -> [0, 1, 2, 5]."""
    found: list[int] = []
    for part in words.split(", "):
        first, _, last = part.partition("–")
        found += range(int(first), int(last or first) + 1)
    return found


def test_depth_curves_are_the_raw_arrays(page: Page, fake_run: Path) -> None:
    with safe_open(fake_run / "scores-large.safetensors", framework="numpy") as stream:
        one, two = (stream.get_tensor(f"raw.depth.loss.{size}") for size in (1, 2))
    table = page.table("loss, nats per token without each block")
    for layer in range(6):
        expected = [str(layer), f"{one[layer]:.4f}", f"{two[layer]:.4f}" if layer < 5 else "–"]
        assert table[str(layer)] == expected
    best = int(two.argmin())
    assert f"without layers {best}–{best + 1}" in page.sections["depth"]


def test_importance_figures_are_those_of_the_scores(page: Page, fake_run: Path) -> None:
    with safe_open(fake_run / "scores-middle.safetensors", framework="numpy") as stream:
        ffn, layer = stream.get_tensor("ffn"), stream.get_tensor("layer")
    table = page.table("Importance of MLP neurons in scores-middle")
    for i, row in enumerate(ffn):
        half = np.sort(row)[::-1][: len(row) // 2].sum() / row.sum()
        assert table[f"layer {i}"][3] == f"{row.max():.4g}"
        assert table[f"layer {i}"][5] == f"{half:.1%}"
    assert [r[1] for r in page.table("Block influence per layer in scores-middle").values()] == [
        f"{v:.4f}" for v in layer
    ]


def test_the_bench_table_says_what_the_results_say(page: Page, fake_run: Path) -> None:
    rows = json.loads((fake_run / "speed.json").read_text())["rows"]
    (caption,) = [c for c in page.tables if c.startswith("Speed and memory")]
    shown = page.tables[caption][1:]
    assert len(shown) == len(rows) == 6
    for row, cells in zip(rows, shown, strict=True):
        prefill = row["prefill_tokens_per_second"]["median"]
        assert cells[0] == row["model"]
        assert cells[1] == f"{row['input']} in, {row['output']} out, batch 1"
        assert cells[2] == f"{prefill:,.0f} {row['ratios']['prefill_tokens_per_second']:.2f}×, ± 4%"
        assert cells[4] == f"{1000 * row['input'] / prefill:.2f} ms"
        assert cells[6:] == ["27.6 KB", "1,234"], "no peak was measured: no column"
    assert page.sections["throughput"].count(MACHINE) == 2


def test_commands_are_those_that_were_run(page: Page, fake_run: Path) -> None:
    family = json.loads((fake_run / "family.json").read_text())
    assert len(family["steps"]) == len(RECIPE.steps)
    for step in family["steps"]:
        assert " ".join(step["command"]) in page.sections["commands"]
    versions = page.table("Versions")
    assert {name: row[1] for name, row in versions.items()} == family["versions"]


def test_the_cost_of_the_whole_chain(page: Page, fake_run: Path) -> None:
    """Sums over all steps, from the run's own state, and the forecast beside them."""
    records = json.loads((fake_run / ".minitron" / "state.json").read_text())
    table = page.table("What every step took")
    assert len(table) == len(records) + 1
    total = next(row for key, row in table.items() if key.startswith("the whole chain"))
    tokens = sum(STEPS.values()) * TOKENS_PER_STEP
    flops = sum(record["took"].get("flops", 0) for record in records.values())
    assert total[1] == text.duration(sum(record["seconds"] for record in records.values()))
    assert total[2] == f"{text.count(tokens)} forecast {text.count(1.1 * tokens)}"
    assert total[3] == f"{text.flops(flops)} forecast {text.flops(1.1 * flops)}"
    assert total[4].startswith("900 MB"), "memory is the most of any step, not a sum"
    assert f"{text.count(tokens)}training tokens in all" in page.sections["family"]


def test_headline_figures(page: Page) -> None:
    words = page.sections["family"]
    above = (ACCURACY["small"] - CHANCE) / (ACCURACY["large"] - CHANCE)
    assert f"{above:.1%}of the task accuracy above chance" in words
    assert f"{LOSS['small'] - LOSS['large']:+.3f}nats per token of loss" in words
    assert f"{SPEED['small'] / SPEED['large']:.2f}×the speed" in words
    assert f"tokens/s on {MACHINE}" in words
