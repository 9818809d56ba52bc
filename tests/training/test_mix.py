"""Dynamic mixes: the update against its formula, what a run reads against the weights that it logs, exact resume."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_cli.data.dynamic import reweighted, without
from minitron_cli.data.schedule import Phase, Schedule
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.report.write import report
from minitron_cli.training import state
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.mix import Mixer
from minitron_cli.training.prepare import Prepared, prepare
from minitron_cli.training.reference_file import read_references
from minitron_cli.training.run import rehearse, train
from tests.report.reading import Page
from tests.training.mixing import WORDS, dynamic, lowered, reference_file, write_domains
from tests.training.runs import signal_after

scipy_stats = pytest.importorskip("scipy.stats")
Toy = Callable[..., Path]


def test_one_update_on_fixed_numbers() -> None:
    """w e^(rate excess), normalised, then the floor; what is below its reference does not shrink further."""
    found = reweighted((0.5, 0.3, 0.2), (2.0, 3.5, 1.0), (1.5, 3.0, 1.2), rate=2.0, floor=0.03)
    grown = [0.5 * math.exp(2.0 * 0.5), 0.3 * math.exp(2.0 * 0.5), 0.2 * math.exp(0.0)]
    expected = [0.97 * g / sum(grown) + 0.01 for g in grown]
    assert found == pytest.approx(expected, rel=1e-12)
    assert reweighted((0.25, 0.75), (1.0, 1.0), (2.0, 2.0), 1.0, 0.0) == pytest.approx((0.25, 0.75), rel=1e-15)


def test_weights_sum_to_one_and_stay_above_the_floor_forever() -> None:
    """One reference out of reach for a thousand updates: its odds grow without end, the others keep c / k."""
    weights: tuple[float, ...] = (0.4, 0.4, 0.2)
    for _ in range(1000):
        weights = reweighted(weights, (3.0, 1.0, 1.0), (2.0, 1.0, 1.5), rate=1.0, floor=1e-4)
        assert abs(sum(weights) - 1) < 1e-12
        assert min(weights) >= 1e-4 / 3 * (1 - 1e-12)
    assert weights[0] > 0.999
    # A domain that has left stays away, and the floor is shared by those that are left.
    assert reweighted((0.6, 0.0, 0.4), (9.0, 99.0, 1.0), (1.0, 1.0, 1.0), 100.0, 0.1) == pytest.approx((0.95, 0, 0.05))
    assert without((0.5, 0.3, 0.2), [1]) == pytest.approx((5 / 7, 0, 2 / 7))
    with pytest.raises(MinitronError, match="every domain"):
        without((0.5, 0.0, 0.5), [0, 2])


def test_rows_are_drawn_by_the_weights_also_of_domains_that_are_rare_in_every_phase() -> None:
    """Chi-square of 200 phases of 16 rows, each with weights of its own; a domain that is due a fifth of a row in each
    phase gets its fifth of the phases.
    """
    rng = np.random.default_rng(0)
    mixes = [(*(0.9875 * rng.dirichlet((5.0, 3.0, 1.0))).tolist(), 0.0125) for _ in range(201)]
    schedule = Schedule(mixes[-1], 4, tuple(Phase(4 * (i + 1), mix) for i, mix in enumerate(mixes[:-1])))
    seen = np.zeros(4)
    for step in range(804):
        domains, numbers = schedule.numbers(step)
        for domain in range(4):
            mine = np.sort(numbers[domains == domain])
            assert mine.tolist() == list(range(int(seen[domain]), int(seen[domain]) + len(mine)))
        seen += np.bincount(domains, minlength=4)
        assert (seen == schedule.used(step + 1)).all()
    expected = 16 * np.sum(mixes, axis=0)
    assert scipy_stats.chisquare(seen, expected).pvalue > 0.05
    assert np.abs(seen - expected).max() < 2


def untimed(output: Path) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "peak_memory")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(output / "run")]


def assert_same_run(one: Path, other: Path) -> None:
    weights = [load_file(output / "model.safetensors") for output in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert untimed(one) == untimed(other)
    last = [state.checkpoints(output / "run")[-1] for output in (one, other)]
    assert state.read_progress(last[0]).mix == state.read_progress(last[1]).mix


@pytest.mark.parametrize("teacher", [False, True])
def test_a_run_updates_its_mix_by_the_losses_that_it_logs(teacher: bool, toy: Toy, tmp_path: Path) -> None:
    """Every weight by the formula from the logged losses; the rows of every step by those weights; the student's own
    cross-entropy with a teacher too.
    """
    student = toy("llama")
    line = dynamic(student, tmp_path, tmp_path / "out", toy("llama", seed=5) if teacher else None, temperature=1.0)
    line = replace(line, mix_rate=2.0)
    outcome = train(line)
    references = read_references(tmp_path / "references.json")
    weights, mixes = (0.5, 0.3, 0.2), []
    lines = {step["step"]: step for step in untimed(tmp_path / "out") if "eval_ce" in step}
    assert sorted(lines) == [0, 3, 5, 6, 9, 10, 12]
    for step in (3, 6, 9):
        losses = [lines[step][f"eval_ce/{name}_eval"] for name in WORDS]
        grown = [w * math.exp(2.0 * max(loss - domain.loss, 0))
                 for w, loss, domain in zip(weights, losses, references.domains)]  # fmt: skip
        weights = tuple((1 - 1e-4) * g / sum(grown) + 1e-4 / 3 for g in grown)
        assert [lines[step][f"mix_weight/{name}_train"] for name in WORDS] == pytest.approx(weights, rel=1e-9)
        excess = [loss - domain.loss for loss, domain in zip(losses, references.domains)]
        assert [lines[step][f"mix_excess/{name}_train"] for name in WORDS] == pytest.approx(excess)
        mixes.append((step, weights))
    for name in ("step", "weights"):
        found = [mix[name == "weights"] for mix in outcome.progress.mix]
        assert np.array(found) == pytest.approx(np.array([mix[name == "weights"] for mix in mixes]), rel=1e-9)
    assert not any("mix_weight" in name for step in (0, 5, 10, 12) for name in lines[step])
    manifest = json.loads((tmp_path / "out" / "minitron.json").read_text())
    assert manifest["training"]["mix"] == [[step, list(w)] for step, w in outcome.progress.mix]
    page = Page(page_of(tmp_path / "out"))
    table = page.table("The mix of out: share of the rows, and excess loss under it")
    for step, weights in outcome.progress.mix:
        for i, name in enumerate(WORDS):
            excess = lines[step][f"mix_excess/{name}_train"]
            assert table[str(step)][i + 1] == f"{weights[i]:.1%} {excess:+.3f} nats"
    assert "The mix of out: ones_train from " in " ".join(value for _, name, value in page.attributes)
    # The last measured loss is that of the model which is exported: the evaluator reads what it should.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (held,) = prepare(line, World()).held_out[:1]
    ids = torch.from_numpy(held.windows(np.arange(4), 32))
    assert model(ids, labels=ids).loss.item() == pytest.approx(lines[12]["eval_ce/ones_eval"], rel=1e-5)


def page_of(output: Path) -> str:
    return Path(report(output)["output"]).read_text()


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(toy: Toy, tmp_path: Path) -> None:
    """Stopped right after an update, between two, and killed before what follows an update was saved."""
    student = toy("llama")
    train(dynamic(student, tmp_path, tmp_path / "whole", mix_rate=2.0))
    line = dynamic(student, tmp_path, tmp_path / "parts", mix_rate=2.0)
    for step in (3, 5, 7):
        with signal_after(step):
            assert train(line).progress.step == step
    shutil.rmtree(tmp_path / "parts" / "run" / "step-0000007")
    with signal_after(10):
        train(line)
    train(line)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert len(state.read_progress(state.checkpoints(tmp_path / "parts" / "run")[-1]).mix) == 3


def _follow(mixer: Mixer, losses: dict[str, float]) -> None:
    for step in (3, 6, 9):
        mixer.update(step, losses)


def ready_for(line: Any) -> tuple[Prepared, Mixer]:
    ready = prepare(line, World())
    assert ready.mixing is not None
    return ready, Mixer(ready.order, ready.mixing, ready.schedule.steps)  # type: ignore[arg-type]


def test_what_happens_when_a_domain_runs_out(toy: Toy, tmp_path: Path) -> None:
    student = toy("llama")
    data, eval_data = write_domains(tmp_path / "text")
    references = reference_file(student, eval_data, tmp_path / "references.json")
    short = tmp_path / "short.jsonl"
    short.write_text("".join((tmp_path / "text" / "many_train.jsonl").read_text().splitlines(keepends=True)[:3]))
    changes: dict[str, Any] = {
        **{"data": (data[0] + ":1", data[1] + ":1", f"{short}:1"), "eval_data": eval_data, "steps": 20},
        "reference_losses": str(references),
    }

    def line(policy: str | None) -> Any:
        return dynamic(student, tmp_path, tmp_path / "out", **changes, on_exhausted=policy)

    ready, repeated = ready_for(line("repeat"))
    windows = ready.order.files[2].num_windows(32)  # type: ignore[union-attr]
    grown = dict.fromkeys(repeated.mixing.measured[:2], 1.0) | {repeated.mixing.measured[2]: 12.0}
    _follow(repeated, grown)
    assert repeated.order.used(20)[2] > windows

    dropped = ready_for(line("drop-domain"))[1]
    _follow(dropped, grown)
    assert dropped.order.used(20)[2] <= windows
    assert dropped.order.weights[2] == 0
    assert sum(dropped.order.weights) == pytest.approx(1)

    with pytest.raises(MinitronError, match=rf"read short \({windows} windows\) to the end before step \d") as caught:
        _follow(ready_for(line(None))[1], grown)
    assert "--on-exhausted repeat" in caught.value.hint
    with pytest.raises(MinitronError, match="rows are to be read once"):
        rehearse(replace(line(None), steps=10_000), 1)


def test_a_run_that_was_refused_more_of_a_domain_goes_on_with_a_policy(toy: Toy, tmp_path: Path) -> None:
    """The refusal keeps the last step; the same line with a policy ends as if it had had it from the start."""
    student = toy("llama")
    data, eval_data = write_domains(tmp_path / "text")
    few = tmp_path / "few.jsonl"
    few.write_text("".join((tmp_path / "text" / "many_train.jsonl").read_text().splitlines(keepends=True)[:4]))
    reference_file(student, eval_data, tmp_path / "references.json")
    common: dict[str, Any] = {
        "data": (data[0] + ":1", data[1] + ":1", f"{few}:1"), "eval_data": eval_data, "mix_rate": 50.0, "steps": 15,
        "reference_losses": str(tmp_path / "references.json"),
    }  # fmt: skip
    lowered(tmp_path / "references.json", (0.0, 0.0, 5.0))
    with pytest.raises(MinitronError, match="to the end before step"):
        train(dynamic(student, tmp_path, tmp_path / "out", **common))
    assert state.checkpoints(tmp_path / "out" / "run")
    train(dynamic(student, tmp_path, tmp_path / "out", **common, on_exhausted="drop-domain"))
    train(dynamic(student, tmp_path, tmp_path / "whole", **common, on_exhausted="drop-domain"))
    assert_same_run(tmp_path / "whole", tmp_path / "out")


def test_a_run_begins_with_the_weights_that_another_ended_with(toy: Toy, tmp_path: Path) -> None:
    line = dynamic(toy("llama"), tmp_path, tmp_path / "first", mix_rate=2.0)
    ended = train(line).progress.mix[-1][1]
    data, _ = write_domains(tmp_path)
    changes: dict[str, Any] = {"data": data, "mix_from": str(tmp_path / "first")}
    for mixed in (True, False):
        fixed = {} if mixed else {"mix": "fixed", "reference_losses": None, "mix_every": None}
        ready = prepare(replace(dynamic(toy("llama"), tmp_path, tmp_path / "out"), **changes, **fixed), World())
        assert ready.order.weights == ended
        assert ready.mixing is None or Mixer(ready.order, ready.mixing, 12).order.weights == pytest.approx(ended)  # type: ignore[arg-type]
    streamed = {"mix": "fixed", "reference_losses": None, "mix_every": None, "stream": True}
    ready = prepare(replace(dynamic(toy("llama"), tmp_path, tmp_path / "out"), **changes, **streamed), World())
    assert ready.order.weights == ended
    for more, message in (
        ({"data": line.data}, "--mix-from and weights in --data both say how to begin"),
        ({"data": data[:2], "eval_data": line.eval_data[:2]}, "was trained on 3 sources, here are 2"),
        ({"mix_from": str(toy("llama"))}, "was not trained with --mix dynamic"),
        ({"output": str(tmp_path / "first" / "inside")}, "is inside the input"),
    ):
        with pytest.raises(MinitronError, match=message):
            prepare(replace(line, **{"output": str(tmp_path / "out"), **changes, **more}), World())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_losses": None}, "--mix dynamic needs --reference-losses"),
        ({"reference_losses": "nowhere.json"}, "there is no file of reference losses nowhere.json"),
        ({"phases": ("5:1,1,1",)}, "--mix dynamic computes the weights that --phase would give"),
        ({"stream": True}, "which --stream does not"),
        ({"mix": "fixed"}, "--reference-losses, --mix-every without --mix dynamic"),
        ({"mix_floor": 1.5}, "--mix-floor must be below 1"),
        ({"seq_len": 16}, "windows of 32 tokens, the run has 16"),
        ({"eval_windows": 3}, "4 windows of ones_eval, the run has 3; 4 windows of few_eval"),
        ({"cross_doc": False}, "documents not kept apart, unlike the run"),
        ({"eval_data": ()}, "3 --data and 0 --eval-data"),
    ],
)
def test_refused_before_anything_is_written(changes: dict, message: str, toy: Toy, tmp_path: Path) -> None:
    line = replace(dynamic(toy("llama"), tmp_path, tmp_path / "out"), **changes)
    for attempt in (lambda: rehearse(line, 1)[1](), lambda: train(line)):
        with pytest.raises(MinitronError, match=re.escape(message)) as caught:
            attempt()
        assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_references_of_other_text_another_tokenizer_or_by_hand_are_refused(toy: Toy, tmp_path: Path) -> None:
    line = dynamic(toy("llama"), tmp_path, tmp_path / "out")
    file = tmp_path / "references.json"
    whole = json.loads(file.read_text())
    foreign = [{**whole["domains"][0], "tokens_sha256": "y"}, *whole["domains"][1:]]
    for change, message in (
        ({"tokenizer_hash": "x"}, "another tokenizer"),
        ({"domains": foreign}, "other text than ones_eval"),
        ({"domains": [{"name": "ones"}]}, "holds no reference losses"),
        ({"format": "minitron-tokens"}, "its format is 'minitron-tokens'"),
    ):  # fmt: skip
        other = {name: value for name, value in {**whole, **change}.items() if name != "digest"}
        file.write_text(json.dumps(other))
        with pytest.raises(MinitronError, match=message):
            train(line)
    file.write_text(json.dumps({**whole, "seq_len": 31}))
    with pytest.raises(MinitronError, match="was altered"):
        train(line)


def test_another_reference_or_another_rate_is_another_run(toy: Toy, tmp_path: Path) -> None:
    student = toy("llama")
    line = dynamic(student, tmp_path, tmp_path / "out", steps=4)
    train(line)
    assert train(line).was_done
    facts, check = rehearse(line, 1)
    check()
    assert re.fullmatch(r"ones_train towards \d\.\d+ on ones_eval, few_train .*, many_train .*", facts["mix"])
    with pytest.raises(MinitronError, match=re.escape("--mix-rate 1.0 -> 2.0")):
        train(replace(line, mix_rate=2.0))
    reference_file(toy("llama", seed=3), line.eval_data, tmp_path / "references.json")
    with pytest.raises(MinitronError, match=r"mix: \w{12} -> \w{12}"):
        train(line)
