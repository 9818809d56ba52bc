"""A teacher recorded as draws from its distribution: literal formulas, expectations, and what a run makes of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.cached_logits import store
from minitron_cli.training.cached_logits.record import parse_record, record_teacher
from minitron_cli.training.cached_logits.sampled import Sampled, draw, offsets_of
from minitron_cli.training.head import Head
from minitron_cli.training.losses import Teacher, fused_cached_distillation, fused_distillation
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.objectives import Divergence
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import train
from tests.training.runs import options

Toy = Callable[..., Path]
N, V, HT, HS = 5, 23, 7, 6
CPU = torch.device("cpu")
Distribution = tuple[Tensor, Head, np.ndarray]


def literal_counts(p: np.ndarray, draws: int, offset: float) -> np.ndarray:
    """How often each id of p (V,) holds one of the evenly spaced quantiles: (V,)."""
    edges = np.concatenate([[0.0], np.cumsum(p)])
    points = (np.arange(draws) + offset) / draws * edges[-1]
    return np.array([((low <= points) & (points < high)).sum() for low, high in pairwise(edges)])


def dense(found: Sampled, vocab: int = V) -> np.ndarray:
    """The weights of every id: (N, vocab)."""
    whole = torch.zeros(len(found.ids), vocab, dtype=torch.float64)
    return whole.scatter_add_(1, found.ids, found.weights.double()).numpy()


@pytest.fixture(scope="module")
def teacher() -> tuple[Tensor, Head, np.ndarray]:
    """States, head, and the distributions at temperature 1.5 (N, V)."""
    torch.manual_seed(0)
    hidden, head = torch.randn(N, HT, dtype=torch.float64), Head(torch.randn(V, HT, dtype=torch.float64))
    return hidden, head, torch.softmax(hidden @ head.weight.T / 1.5, -1).numpy()


@pytest.mark.parametrize("power", [1.0, 0.6])
def test_draws_are_quantiles_of_the_distribution(power: float, teacher: Distribution) -> None:
    hidden, head, p = teacher
    offsets = np.random.default_rng(1).random(N)
    found = draw(hidden, head, torch.from_numpy(offsets), 16, power, temperature=1.5, chunk=2)
    q = p**power / (p**power).sum(-1, keepdims=True)
    counts = np.array([literal_counts(q[i], 16, offsets[i]) for i in range(N)])
    np.testing.assert_allclose(dense(found), counts / 16 * p / q, rtol=1e-9)
    np.testing.assert_allclose(found.entropy.numpy(), -(p * np.log(p)).sum(-1), rtol=1e-9)


@pytest.mark.parametrize("power", [1.0, 0.6, 1.4])
def test_the_expected_weight_of_an_id_is_its_probability(power: float, teacher: Distribution) -> None:
    hidden, head, p = teacher
    offsets = torch.from_numpy(offsets_of(3, 0, np.arange(3000), N))
    weights = np.stack([dense(draw(hidden, head, one, 4, power, temperature=1.5)) for one in offsets])
    q = p**power / (p**power).sum(-1, keepdims=True)
    error = (p**2 / q / 4 / len(weights)) ** 0.5  # of independent draws: those of rare ids are too few to tell by
    assert (np.abs(weights.mean(0) - p) <= 4 * error).all()
    if power == 1.0:
        assert (weights.var(0).sum(-1) < (p * (1 - p) / 4).sum(-1)).all(), "less than independent draws vary"


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


def test_loss_and_gradient_are_the_cross_entropy_of_the_draws(teacher: Distribution) -> None:
    torch.manual_seed(1)
    states = torch.randn(N, HS, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, HS, dtype=torch.float64, requires_grad=True)
    of_token, targets = torch.rand(N, dtype=torch.float64), torch.randint(V, (N,))
    cache = draw(*teacher[:2], torch.rand(N), 8, temperature=1.5)
    div = Divergence(temperature=1.5)
    found = fused_cached_distillation(
        states, Head(weight), cache, of_token, div=div, targets=targets, ce_weight=0.3, chunk_tokens=2
    )
    z = states @ weight.T
    log_p = torch.log_softmax(z / 1.5, -1)
    each = -(torch.from_numpy(dense(cache)) * log_p).sum(-1) - cache.entropy
    labels = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    literal = (of_token * (1.5**2 * each + 0.3 * labels)).sum()
    torch.testing.assert_close(found.loss, literal)
    for one, other in zip(gradients(found.loss, states, weight), gradients(literal, states, weight)):
        torch.testing.assert_close(one, other)
    soft = fused_cached_distillation(states, Head(weight), cache, of_token, div=replace(div, kind="soft_ce"))
    torch.testing.assert_close(soft.kd - found.kd, 1.5**2 * (of_token * cache.entropy).sum())


def test_the_expected_divergence_and_gradient_are_the_full_ones(teacher: Distribution) -> None:
    hidden, head, _ = teacher
    torch.manual_seed(2)
    states = torch.randn(N, HS, dtype=torch.float64, requires_grad=True)
    student, of_token = Head(torch.randn(V, HS, dtype=torch.float64)), torch.rand(N, dtype=torch.float64)
    full = fused_distillation(states, student, [Teacher(hidden, head)], of_token)
    (wanted,) = gradients(full.loss, states)
    values, slopes = [], []
    for offsets in torch.from_numpy(offsets_of(4, 1, np.arange(1500), N)):
        one = fused_cached_distillation(states, student, draw(hidden, head, offsets, 4), of_token)
        values.append(one.kd.detach())
        slopes.append(gradients(one.loss, states)[0])
    for samples, expected in ((torch.stack(values), full.kd.detach()), (torch.stack(slopes), wanted)):
        error = samples.std(0) / len(samples) ** 0.5
        assert ((samples.mean(0) - expected).abs() <= 4.5 * error + 1e-9).all()


def test_offsets_depend_on_seed_and_place_alone() -> None:
    whole = offsets_of(7, 0, np.array([3, 9, 11]), 50)
    assert np.array_equal(offsets_of(7, 0, np.array([9]), 50), whole[1:2])
    others = [offsets_of(8, 0, np.array([9]), 50), offsets_of(7, 1, np.array([9]), 50)]
    assert all((np.abs(other - whole[1]) > 1e-6).all() for other in others)
    assert 0 <= whole.min() < 0.1
    assert 0.9 < whole.max() < 1


@pytest.mark.parametrize(("record", "power"), [("sampled:64", 1.0), ("sampled:300:0.8", 0.8)])
def test_what_is_stored_is_what_was_drawn(record: str, power: float, toy: Toy, text: Path, tmp_path: Path) -> None:
    large = toy("llama", hidden_size=66, seed=5)
    line = options(toy("llama"), text, tmp_path / "x", large, steps=3, seed=2)
    found = record_teacher(line, tmp_path / "drawn", record)
    recording = store.open_recording(tmp_path / "drawn")
    order = prepare(line, World(0, 1, CPU)).order
    files, windows = order.places(1)
    kept = recording.read(files, windows).at(slice(0, 2), CPU)
    draws = recording.header.draws
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(large)
        p = model(torch.from_numpy(order.rows(1)[:2])).logits.double().softmax(-1).numpy()[:, :-1].reshape(-1, 97)
    q = p**power / (p**power).sum(-1, keepdims=True)
    offsets = offsets_of(2, 0, windows[:2], 31).ravel()
    counts = np.array([literal_counts(q[i], draws, offsets[i]) for i in range(len(p))])
    places = np.arange(64).reshape(2, 32)[:, :-1].ravel()
    weights = dense(kept.at(torch.from_numpy(places)), 97)
    # The teacher ran in float32: a quantile at the very edge of an id may fall on its neighbour.
    assert (np.abs(weights - counts / draws * p / q) < 1e-5).mean() > 0.999
    entropy = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(kept.entropy.numpy()[places], entropy, rtol=1e-3)
    ids = sum((recording.read(files, windows[i : i + 1]).at(slice(0, 1), CPU).weights[:-1] > 0).sum() for i in range(4))
    (drawn,) = (tmp_path / "drawn").glob("drawn-*.bin")
    count, each = (1, 3) if power == 1.0 else (2, 6)  # uint8 beside uint16 ids; uint16 and float32
    part = sum(len(r) for r in recording.read(files, windows).records)
    assert part == 4 * 31 * (2 + count) + int(ids) * each
    assert found.bytes == drawn.stat().st_size
    assert found.bytes / found.tokens <= recording.header.layout().most_bytes() / 31


def test_an_interrupted_recording_of_draws_goes_on_to_the_same_bytes(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "x", toy("llama", hidden_size=66, seed=5), steps=3)
    for name in ("whole", "cut"):
        record_teacher(line, tmp_path / name, "sampled:16")
    data = tmp_path / "cut" / "drawn-0.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 3])
    (tmp_path / "cut" / "header.json").unlink()
    record_teacher(line, tmp_path / "cut", "sampled:16")
    assert data.read_bytes() == whole
    for name in ("ends-0.npy", "windows-0.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(MinitronError, match="holds a recording of something else"):
        record_teacher(line, tmp_path / "cut", "sampled:17")


def test_training_from_draws_follows_the_live_teacher(toy: Toy, text: Path, tmp_path: Path) -> None:
    large = toy("llama", hidden_size=66, seed=5)
    record_teacher(options(toy("llama"), text, tmp_path / "x", large), tmp_path / "drawn", "sampled:400")
    for name, of in (("live", large), ("drawn-run", tmp_path / "drawn")):
        train(options(toy("llama"), text, tmp_path / name, of, lr=5e-3))
    live, drawn = (np.array([line["kd"] for line in read_metrics(tmp_path / n / "run")]) for n in ("live", "drawn-run"))
    assert live[-1] < 0.9 * live[0]
    np.testing.assert_allclose(drawn, live, atol=0.02 * live[0])
    with pytest.raises(MinitronError, match="--kind jsd needs the teacher's probabilities"):
        train(options(toy("llama"), text, tmp_path / "out", tmp_path / "drawn", kind="jsd"))


@pytest.mark.parametrize("text", ["sampled", "sampled:0", "sampled:1.5", "sampled:64:0", "sampled:70000", "best:3"])
def test_what_cannot_be_recorded_is_refused_by_name(text: str) -> None:
    with pytest.raises(MinitronError, match=re.escape(f"--record {text!r} is unknown")):
        parse_record(text)
