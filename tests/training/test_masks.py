"""Learned masks: the masked model is the pruned one, in every family; formulas, gradients and published numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.families import family_of
from minitron_cli.families.features import unmasked
from minitron_cli.prune.target import Target, target_shape
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import from_scores, top_k
from minitron_cli.spec.shape import Shape
from minitron_cli.training.masks import concrete
from minitron_cli.training.masks.gates import gates_of, plan_of, ranks
from minitron_cli.training.masks.term import Masks
from tests.prune.cutting import ALL_CASES, load, logits_of, random_scores, sizes_for
from tests.toys import toy_ids

Toy = Callable[..., Path]
MORE: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("llama", {"head": 4, "kv": 2, "hidden": 36, "layer": 2}, {}),  # fewer heads in every group
    ("llama", {"head": 2, "kv": 2}, {"num_attention_heads": 4, "num_key_value_heads": 4}),  # no groups
    ("qwen2", {"ffn": 40, "hidden": 36}, {"tie_word_embeddings": False}),
    ("lfm2", {"ffn": 56, "hidden": 36, "head": 4}, {}),
]


def masks_between(model: Any, source: Shape, target: Shape, seed: int = 0, **changes: Any) -> Masks:
    """Masks at random places, some of them mid-range, in evaluation mode."""
    term = Masks(model, source, target, **{"rates": (1.0, 1.0), "warmup": 0, "seed": seed, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for log_alpha in term.gates.log_alpha.values():
            log_alpha.copy_(torch.randn(log_alpha.shape, generator=generator) * 2)
    return term.eval()


def absorbed(model: Any, term: Masks, source: Path, directory: Path) -> Path:
    """The whole model with its masks in its weights, as a checkpoint of its own."""
    absorb = term.absorber()
    small = load(source)
    small.load_state_dict({name: absorb(name, value.detach()) for name, value in model.state_dict().items()})
    small.save_pretrained(directory)
    return directory


CASES = [(model_type, sizes_for(model_type, cut), {}) for model_type, cut in ALL_CASES]
# Layers of several kinds are not masked, and some axes have no masks.
CASES = [
    (model_type, sizes, config)
    for model_type, sizes, config in CASES
    if not ("layer" in sizes and family_of(model_type).kinds)
    and not {"", *sizes} & unmasked(family_of(model_type)).keys()
]


@pytest.mark.parametrize(("model_type", "sizes", "config"), [*CASES, *MORE], ids=str)
def test_the_masked_model_is_the_absorbed_and_trimmed_one(
    model_type: str, sizes: dict[str, int], config: dict[str, Any], toy: Toy, tmp_path: Path
) -> None:
    source = toy(model_type, **config)
    checkpoint, model = open_checkpoint(source), load(source)
    target = target_shape(checkpoint, Target(sizes))
    term = masks_between(model, checkpoint.shape, target)
    ids = toy_ids(2, 11)
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        term.before_forward()
        masked = model(ids, use_cache=False).logits
    whole = absorbed(model, term, source, tmp_path / "whole")
    write_pruned(open_checkpoint(whole), term.plan(), tmp_path / "small")
    assert open_checkpoint(tmp_path / "small").shape == target
    trimmed = logits_of(tmp_path / "small", ids)
    assert (trimmed - masked).abs().max() < 1e-4
    assert (trimmed - before).abs().max() > 1e-2, "the masks changed nothing: the test proves nothing"
    # Negative control: masks of 1 for what stays would be another model.
    write_pruned(checkpoint, term.plan(), tmp_path / "plain")
    assert (logits_of(tmp_path / "plain", ids) - masked).abs().max() > 1e-4


def test_formulas_are_those_of_the_released_code() -> None:
    """The numbers of adjacent literature, written out: beta 2/3, stretch (-0.1, 1.1), clamp ln 100."""
    assert (concrete.BETA, concrete.LOW, concrete.HIGH) == (2 / 3, -0.1, 1.1)
    assert pytest.approx(4.605170186) == concrete.LIMIT
    a, u = torch.tensor([-1.3, 0.2, 4.0]).double(), torch.tensor([0.9, 0.4, 0.01]).double()
    for mask, log_alpha, draw in zip(concrete.sample(a, u).tolist(), a.tolist(), u.tolist()):
        s = 1 / (1 + math.exp(-(math.log(draw) - math.log(1 - draw) + log_alpha) / (2 / 3)))
        assert mask == pytest.approx(min(1.0, max(0.0, s * 1.2 - 0.1)), abs=1e-12)
    limits = torch.tensor([-concrete.LIMIT, 0.0, concrete.LIMIT]).double()
    assert concrete.alive(limits).tolist() == pytest.approx([0.0471, 1 / (1 + math.exp(-1.5986)), 0.9980], abs=1e-4)
    assert float(concrete.settled(limits[-1:], 1)) == pytest.approx(0.996, abs=1e-4)
    # A fully polarised mask overshoots: 2560 of 4096 hidden channels are 2627 in expectation.
    polarised = torch.full((4096,), -concrete.LIMIT)
    polarised[:2560] = concrete.LIMIT
    assert float(concrete.alive(polarised).sum()) == pytest.approx(2627, abs=0.6)


def test_alive_is_the_share_of_draws_that_are_not_zero() -> None:
    for value in (-2.0, 0.0, 3.0):
        a = torch.full((200_000,), value)
        u = torch.rand(a.shape, generator=torch.Generator().manual_seed(1)) * (1 - 2e-6) + 1e-6
        share = float((concrete.sample(a, u) > 0).float().mean())
        assert share == pytest.approx(float(concrete.alive(a[:1])), abs=4 * 0.5 / 200_000**0.5)


def test_gradients_are_those_of_the_formulas() -> None:
    """Autograd in float64 against derivatives by hand: of a draw, of the expected share, and of the Lagrangian."""
    a = torch.linspace(-3, 3, 12).double().requires_grad_()
    u = torch.linspace(0.1, 0.85, 12).double()
    z = concrete.sample(a, u)
    (found,) = torch.autograd.grad(z.sum(), a)
    s = torch.sigmoid((u.log() - (1 - u).log() + a.detach()) * 1.5)
    inside = ((z > 0) & (z < 1)).double()
    assert 0 < inside.sum() < 12
    torch.testing.assert_close(found, inside * 1.2 * s * (1 - s) * 1.5)

    rows, target = a.view(3, 4), 0.4
    multipliers = torch.tensor([0.7, -1.9]).double().requires_grad_()
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    above = 1 - concrete.alive(rows).mean(-1) - target
    of_a, of_l = torch.autograd.grad(concrete.penalty(above, multipliers, weights), (a, multipliers))
    p = torch.sigmoid(rows.detach() + 1.5985969)
    g = 1 - p.mean(-1) - target
    by_hand = -(weights * (0.7 + 2 * -1.9 * g))[:, None] * p * (1 - p) / 4
    torch.testing.assert_close(of_a.view(3, 4), by_hand, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(of_l, torch.stack([(weights * g).sum(), (weights * g * g).sum()]), rtol=1e-6, atol=1e-9)


def test_settled_keeps_what_a_plan_keeps() -> None:
    values = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(3)).round()  # ties
    for keep in (1, 4, 7):
        kept = concrete.settled(values, keep).nonzero()[:, -1].view(5, 3, keep)
        assert np.array_equal(kept.numpy(), top_k(values.numpy(), keep))


@pytest.mark.parametrize(
    ("model_type", "cut"), [case for case in ALL_CASES if case[0] in ("llama", "gpt_neox", "qwen2_moe")]
)
def test_plans_rank_as_scores_do(model_type: str, cut: str, toy: Toy) -> None:
    """Values that rank as scores do settle into the plan that the scores make."""
    source = open_checkpoint(toy(model_type)).shape
    target = target_shape(open_checkpoint(toy(model_type)), Target(sizes_for(model_type, cut)))
    scores, gates = random_scores(source), gates_of(source, target)
    found = plan_of(gates, source, target, {gate.axis: -ranks(gate, scores, source) for gate in gates})
    expected = from_scores(scores, source, target)
    assert found.kept.keys() == expected.kept.keys()
    for axis, index in expected.kept.items():
        assert np.array_equal(found.kept[axis], index), axis
