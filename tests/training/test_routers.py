"""Router drift: against counting sets token by token, and in the metrics of a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.hf.parts import experts_of
from minitron_cli.prune.write import write_pruned
from minitron_cli.report.read.models import single_model
from minitron_cli.report.sections.training import evaluations
from minitron_cli.spec.plan import Merge, Plan
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.objectives import Objective
from minitron_cli.training.routers import Counterpart, RouterDrift, counterparts, missed_share
from minitron_cli.training.run import train
from minitron_cli.training.step import kd_step
from tests.prune.cutting import load, plan_for, sizes_for
from tests.toys import SPARSE, keep_all, randomise, toy_ids
from tests.training.runs import options, write_text

Toy = Callable[..., Path]


def chosen(model: Any, layer: int, ids: torch.Tensor) -> list[tuple[list[int], list[float]]]:
    """The experts and their weights of every token, from transformers' own routing."""
    found = []
    hook = experts_of(model, layer).register_forward_pre_hook(lambda _, args: found.append(args[1:3]))
    with torch.no_grad():
        model(ids, use_cache=False)
    hook.remove()
    ((index, weights),) = found
    return list(zip(index.tolist(), weights.tolist()))


def literal(student: Any, teacher: Any, pairs: tuple[Counterpart, ...], ids: torch.Tensor) -> np.ndarray:
    """The share of what the teacher chooses and the student could choose that it does not, (token,) for each layer."""
    rows = []
    for pair in pairs:
        row = []
        both = zip(chosen(student, pair.student, ids), chosen(teacher, pair.teacher, ids))
        for (mine, _), (theirs, weights) in both:
            first = [e for _, e in sorted(zip(weights, theirs), reverse=True)][: len(mine)]
            wanted = [int(pair.experts[expert]) for expert in first]
            row.append(sum(expert >= 0 and expert not in mine for expert in wanted) / len(mine))
        rows.append(row)
    return np.array(rows)


def drift(student: Any, teacher: Any, pairs: tuple[Counterpart, ...], ids: torch.Tensor, weights: torch.Tensor) -> Any:
    step = kd_step(student, teacher, Objective(), more=(RouterDrift(student, teacher, pairs),))
    with torch.no_grad():
        return step(ids, weights)


def shapes(*paths: Path) -> Any:
    return [open_checkpoint(path).shape for path in paths]


@pytest.mark.parametrize("model_type", SPARSE)
def test_it_is_what_counting_finds(toy: Toy, tmp_path: Path, model_type: str) -> None:
    source = open_checkpoint(toy(model_type))
    plan = plan_for(source, sizes_for(model_type, "all"))
    write_pruned(source, plan, tmp_path / "small")
    student, teacher, ids = load(tmp_path / "small"), load(toy(model_type)), toy_ids(2, 9)
    randomise(student, 7)  # as far as training can go
    pairs = counterparts(plan, *shapes(tmp_path / "small", toy(model_type)))
    assert [pair.student for pair in pairs] == list(plan.target.layers_of("expert"))
    weights = torch.rand(2, 9)
    expected = literal(student, teacher, pairs, ids)
    value = drift(student, teacher, pairs, ids, weights)["router_drift"]
    assert float(value) == pytest.approx((expected.mean(0) * weights.flatten().numpy()).sum(), rel=1e-5)
    assert expected.any(), "nothing drifts: the test proves nothing"


def test_the_first_layer_of_a_cut_makes_every_choice_that_it_can(toy: Toy, tmp_path: Path) -> None:
    """Its router sees what the teacher's sees, and has its rows of the experts that stay."""
    source = open_checkpoint(toy("mixtral"))
    plan = plan_for(source, {"expert": 3})
    write_pruned(source, plan, tmp_path / "small")
    pairs = counterparts(plan, *shapes(tmp_path / "small", toy("mixtral")))
    found = literal(load(tmp_path / "small"), load(toy("mixtral")), pairs, toy_ids(2, 9))
    assert not found[0].any()
    other = tuple(replace(pair, experts=pair.experts[::-1].copy()) for pair in pairs)
    assert literal(load(tmp_path / "small"), load(toy("mixtral")), other, toy_ids(2, 9))[0].any()


def test_a_copy_does_not_drift(toy: Toy) -> None:
    shape = shapes(toy("qwen3_moe"))[0]
    pairs = counterparts(None, shape, shape)
    model, weights = load(toy("qwen3_moe")), torch.ones(2, 9)
    assert float(drift(model, load(toy("qwen3_moe")), pairs, toy_ids(2, 9), weights)["router_drift"]) == 0


def test_fewer_experts_a_token_and_merged_ones() -> None:
    student = torch.tensor([[0], [1], [1]])
    teacher, weights = torch.tensor([[4, 2], [0, 3], [3, 1]]), torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    becomes = torch.tensor([0, 1, 1, 1, -1])  # 3 was merged into 1, 4 is gone
    assert missed_share(student, teacher, weights, becomes).tolist() == [0, 0, 0]
    assert missed_share(1 - student, teacher, weights, becomes).tolist() == [0, 1, 1]


def test_where_experts_correspond(toy: Toy) -> None:
    source = open_checkpoint(toy("mixtral"))
    plan = plan_for(source, {"expert": 3, "layer": 2})
    pairs = counterparts(plan, plan.target, source.shape)
    assert [pair.teacher for pair in pairs] == plan.kept["layer"].tolist()
    for layer, pair in enumerate(pairs):
        assert np.flatnonzero(pair.experts >= 0).tolist() == plan.kept["expert"][layer].tolist()
    kept = np.tile([0, 2, 4], (3, 1))
    into, share = np.tile([0, 0, 1, 1, 2], (3, 1)), np.ones((3, 5)) / 2
    whole = plan_for(source, {"expert": 3})
    merged = Plan(whole.source, whole.target, {"expert": kept}, merge=Merge(into, share))
    assert all(pair.experts.tolist() == [0, 0, 1, 1, 2] for pair in counterparts(merged, whole.target, source.shape))
    assert not counterparts(plan, plan.target, plan.target), "cut from another model"
    assert not counterparts(None, plan.target, source.shape), "nothing says which experts they are"
    dense = open_checkpoint(toy("mistral")).shape
    assert not counterparts(keep_all(dense), dense, source.shape)


def test_a_run_writes_it_down(toy: Toy, tmp_path: Path) -> None:
    text, source = write_text(tmp_path / "text.jsonl"), open_checkpoint(toy("mixtral"))
    write_pruned(source, plan_for(source, {"expert": 3}), tmp_path / "small")
    run = {"steps": 2, "eval_data": (str(text),), "eval_windows": 2, "eval_every": 1}
    lines = {}
    for name, student, teacher in (
        ("sparse", tmp_path / "small", toy("mixtral")),
        ("dense", toy("mistral"), toy("mixtral")),
    ):
        train(options(student, text, tmp_path / name, teacher, **run))
        lines[name] = read_metrics(tmp_path / name / "run")
    measured = [line["eval_router_drift"] for line in lines["sparse"] if "eval_ce" in line]
    assert measured
    assert all(0 < value < 1 for value in measured)
    assert not any("router_drift" in name for line in lines["dense"] for name in line)
    assert not any("router_drift" in line for line in lines["sparse"]), "training itself does not measure it"
    table = evaluations(single_model(tmp_path / "sparse")[0])
    assert table is not None
    assert "experts missed" in table.columns
