"""The rotated residual stream: exact with all directions, and where it has no more than stay; refused elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.__main__ import run as minitron
from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.families import FAMILIES, family_of
from minitron_cli.hf.parts import final_norm_of, input_norm_of
from minitron_cli.prune.compensate import open_compensation, regression
from minitron_cli.prune.directions import (
    bias_of,
    by_directions,
    leading,
    least_squares_map,
    normalised,
    norms_of,
    readers_of,
    with_mean,
)
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.tied import TiedHead
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Plan, hidden_origin
from minitron_cli.training.student import projection
from tests.prune.cutting import difference, load, logits_of, plan_for, random_scores, sizes_for
from tests.prune.test_compensate import measure, random_rows
from tests.toys import TOY_CONFIGS, keep_all, make_toy

ROTATES = [t for t in TOY_CONFIGS if family_of(t).norms]
TIED = [
    (t, tied)
    for t in ROTATES
    for tied in (False, True)
    if not (tied and "tie_word_embeddings" in family_of(t).requires)
]
STAYS = [t for t in TOY_CONFIGS if not family_of(t).norms]


def rotate(source: Path, plan: Plan, hidden: int, output: Path, rows: np.ndarray) -> Plan:
    """Cut along directions by the moments on `rows`; returns the plan."""
    checkpoint = open_checkpoint(source)
    by = open_compensation(measure(source, output.with_name(f"{output.name}.safetensors"), rows), 1e-9)
    plan = by_directions(checkpoint, plan, hidden, by)
    write_pruned(checkpoint, plan, output, compensation=by)
    return plan


@pytest.mark.parametrize(("family", "tied"), TIED)
def test_with_all_directions_the_function_stays(tmp_path, family, tied):
    """Norm weights as real models have them: of both signs before the head, nearly 0 before the first layer."""
    source = uneven(make_toy(family, tmp_path / "source", tie_word_embeddings=tied), tmp_path / "uneven")
    plan = rotate(source, whole(source), 48, tmp_path / "rotated", random_rows(24, 16))
    if not (tied and family_of(family).centred):  # there the channels are the basis that is exact
        assert np.abs(plan.basis - np.eye(48)).max() > 0.1  # the weights are others
    assert difference(logits_of(tmp_path / "rotated"), logits_of(source)) < 1e-4


def uneven(source: Path, output: Path, change: Callable[[torch.nn.Module], None] = lambda model: None) -> Path:
    """The model with norm weights of a real one: -2.1 to 3.3 in the final norm, about 0.001 in the first."""
    model, family = load(source), open_checkpoint(source).family
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        change(model)
        # Beside a bias, 0.001 would be lost in the rounding of Gram matrices.
        first = (0.05, 0.2) if family.centred else (5e-4, 2e-3)
        for norm, low, high in ((final_norm_of(model), -2.1, 3.3), (input_norm_of(model, 0), *first)):
            norm.weight.copy_(torch.rand(48, generator=generator) * (high - low) + low - family.norm_offset)
    model.save_pretrained(output)
    return output


def whole(path: Path) -> Plan:
    return keep_all(open_checkpoint(path).shape)


def flatten(model: torch.nn.Module, rank: int) -> None:
    """Let everything that writes to the residual stream write into one subspace of this many dimensions."""
    some = torch.linalg.qr(torch.randn(48, rank, generator=torch.Generator().manual_seed(3)))[0]
    inside = some @ some.T
    for name, tensor in model.state_dict().items():
        if "embed" in name:
            tensor.copy_(tensor @ inside)
        elif name.endswith(("experts.down_proj", "w2.weight")) or name.split(".")[-2] in (
            "o_proj",
            "down_proj",
            "out_proj",
            "output_linear",
            "dense",
            "dense_4h_to_h",
            "c_proj",
        ):
            tensor.copy_(inside @ tensor)


# A head that is tied after a LayerNorm is fitted, by weights that no choice of basis makes free (see `tied`).
EXACT = [
    (family, tied)
    for family, tied in TIED
    if sizes_for(family, "hidden") == {"hidden": 36} and not (tied and family_of(family).centred)
]


@pytest.mark.parametrize(("family", "tied"), EXACT)
def test_exact_where_the_stream_has_no_more_directions(tmp_path, family, tied):
    source = make_toy(family, tmp_path / "full", tie_word_embeddings=tied)
    rank = 35 if family_of(family).centred else 36  # one is for the mean over channels
    flat = uneven(source, tmp_path / "flat", lambda model: flatten(model, rank))
    rotate(flat, whole(flat), 36, tmp_path / "out", random_rows(24, 16))
    assert ("lm_head.weight" in open_checkpoint(tmp_path / "out").tensors) is not tied
    assert difference(logits_of(tmp_path / "out"), logits_of(flat)) < 5e-3
    rotate(source, whole(source), 36, tmp_path / "control", random_rows(24, 16))
    assert difference(logits_of(tmp_path / "control"), logits_of(source)) > 0.05


def test_a_tied_head_is_exact_where_stream_and_embedding_leave_directions_out(tmp_path):
    """Gram matrices in float32 are then not positive definite: that must neither fail nor give weights of noise."""
    source = make_toy("llama", tmp_path / "full", tie_word_embeddings=True)
    flat = uneven(source, tmp_path / "flat", lambda model: flatten(model, 20))
    for hidden in (48, 36):
        rotate(flat, whole(flat), hidden, tmp_path / f"out-{hidden}", random_rows(24, 16))
        assert difference(logits_of(tmp_path / f"out-{hidden}"), logits_of(flat)) < 5e-3
        weights = load(tmp_path / f"out-{hidden}").model.norm.weight.detach().numpy()
        assert np.abs(weights).max() < 2 * 3.3


def test_a_tied_head_is_the_best_symmetric_one():
    """Against least squares over single tokens, one unknown for each entry of a triangle; with all directions exact."""
    generator = np.random.default_rng(0)
    embedding, weight = generator.standard_normal((40, 12)), generator.uniform(-2.1, 3.3, 12)
    streams = generator.standard_normal((300, 12)) @ generator.standard_normal((12, 12))
    gram, moment = embedding.T @ embedding, streams.T @ streams / 300
    basis = np.linalg.qr(generator.standard_normal((12, 7)))[0]
    rows, columns = np.tril_indices(7)
    units = np.zeros((28, 7, 7))
    units[np.arange(28), rows, columns] = units[np.arange(28), columns, rows] = 1
    design = np.stack([(streams @ basis @ unit @ basis.T @ embedding.T).ravel() for unit in units], axis=1)
    best = np.linalg.lstsq(design, ((streams * weight) @ embedding.T).ravel(), rcond=None)[0]
    head = TiedHead(gram, weight, moment)
    found = head.fitted(basis)
    np.testing.assert_allclose(found, np.tensordot(best, units, 1), atol=1e-4)  # the ridge
    every = np.linalg.qr(generator.standard_normal((12, 12)))[0]
    np.testing.assert_allclose(every @ head.fitted(every) @ every.T, np.diag(weight), atol=1e-9)


def test_a_tied_head_after_a_layernorm_is_the_best_of_its_basis_and_loses_less_the_wider_it_is():
    """Weights and bias against least squares over single tokens, and what is lost of logits that a head with weights
    of its own would have all of."""
    generator = np.random.default_rng(0)
    lost = []
    for n, kept in ((32, 24), (256, 192)):
        inside = np.linalg.qr(np.column_stack([np.ones(n), generator.standard_normal((n, kept - 1))]))[0][:, 1:]
        embedding = generator.standard_normal((2 * n, kept - 1)) @ inside.T
        weight, bias = generator.uniform(0.5, 1.5, n), generator.standard_normal(n)
        streams = generator.standard_normal((4 * n, kept - 1)) @ inside.T
        head = TiedHead(embedding.T @ embedding, weight, streams.T @ streams / len(streams), True, bias)
        basis = with_mean(inside, head)
        np.testing.assert_allclose(basis @ np.ones(kept) / np.sqrt(kept), np.ones(n) / np.sqrt(n), atol=1e-9)
        expected = (streams * weight) @ embedding.T
        rows, found = embedding @ basis, np.diagonal(head.diagonal(basis))
        if n == 32:
            design = np.einsum("ti,vi->tvi", streams @ basis, rows).reshape(-1, kept)
            best = np.linalg.lstsq(design, expected.ravel(), rcond=None)[0]
            np.testing.assert_allclose(found, best, atol=1e-3)  # the ridge
        np.testing.assert_allclose(rows @ head.bias(basis), embedding @ bias, atol=1e-2)
        lost.append(np.linalg.norm((streams @ basis * found) @ rows.T - expected) / np.linalg.norm(expected))
    assert lost[1] < lost[0] / 2 < 0.05, lost


def test_a_norm_that_the_model_lacks_is_named(toy, capsys):
    """Where StableLM's halves run side by side, its MLP reads what the norm of the attention gives."""
    source = toy("stablelm", use_parallel_residual=True)
    line = ["prune", str(source), "--hidden", "32", "--heads", "4", "--compensate", "least-squares", "--rotate"]
    assert minitron([*line, "--dry-run"]) == 1
    assert "mlp.gate_proj.weight reads the residual stream after a norm other than" in capsys.readouterr().err


def test_directions_lose_less_of_what_readers_read_than_channels_or_variance(tmp_path):
    source = make_toy("llama", tmp_path / "source")
    checkpoint = open_checkpoint(source)
    by = open_compensation(measure(source, tmp_path / "s.safetensors", random_rows(32, 16)), 1e-9)
    norms = list(norms_of(checkpoint, keep_all(checkpoint.shape), by))
    state = {name: tensor.double().numpy() for name, tensor in load(source).state_dict().items()}

    def lost(basis: np.ndarray) -> float:
        """Mean over readers of the share of their output's energy that is lost, by plain least squares."""
        shares = []
        for norm in norms:
            moment = by.moments.mean(norm.input) / np.outer(norm.weight, norm.weight)
            off = (
                np.eye(48) - np.linalg.lstsq((basis.T @ moment @ basis).T, basis.T @ moment, rcond=None)[0].T @ basis.T
            )
            for reader in norm.input.readers or ("model.embed_tokens.weight",):
                weight = state[reader] * norm.weight
                shares.append(np.trace(weight @ off @ moment @ off.T @ weight.T) / np.trace(weight @ moment @ weight.T))
        return float(np.mean(shares))

    mean = sum(by.moments.mean(n.input) / np.outer(n.weight, n.weight) for n in norms)
    variance = np.linalg.eigh(mean)[1][:, ::-1][:, :24]
    channels = np.eye(48)[:, np.argsort(-np.diagonal(mean))[:24]]
    found = leading(checkpoint, norms, 24, by)
    assert lost(found) < lost(variance) < lost(channels)


def test_with_every_other_axis_cut_too(tmp_path):
    """Everything at once, in every family that rotates: it loads, its shape is right, and it can be cut again."""
    for family in ROTATES:
        source = make_toy(family, tmp_path / family)
        checkpoint = open_checkpoint(source)
        sizes = sizes_for(family, "all")
        shape = target_shape(checkpoint, Target(sizes)).with_(hidden=48)
        wide = make_plan(checkpoint.shape, shape, Target(sizes), random_scores(checkpoint.shape))
        output = tmp_path / f"{family}-out"
        rotate(source, wide, sizes["hidden"], output, random_rows(8, 16))
        assert open_checkpoint(output).shape == wide.target.with_(hidden=sizes["hidden"])
        assert torch.isfinite(logits_of(output)).all()
        cut = open_checkpoint(output)
        more = {"layer": 1} if not cut.shape.kinds else {"ffn": 48} if "ffn" in cut.shape else {"expert_ffn": 16}
        again = plan_for(cut, more)
        write_pruned(open_checkpoint(output), again, tmp_path / f"{family}-again")
        assert torch.isfinite(logits_of(tmp_path / f"{family}-again")).all()


@pytest.mark.parametrize("family", STAYS)
def test_other_families_are_refused(toy, tmp_path, family):
    checkpoint = open_checkpoint(toy(family))
    by = open_compensation(measure(toy(family), tmp_path / "s.safetensors", random_rows(2, 5)), 1e-2)
    with pytest.raises(MinitronError, match="cannot be cut along directions"):
        by_directions(checkpoint, keep_all(checkpoint.shape), 36, by)


def test_every_norm_line_is_in_its_table():
    for family in FAMILIES:
        lines = {weight.name for weight in family.weights}
        assert set(family.norms) <= lines
        assert bool(family.norms) is not bool(family.unrotated), family.name
        biased = {bias_of(name) for name in family.norms} & lines
        assert not biased or family.centred, family.name  # RMS norms have none, and no other norm sees the stream
        assert not {n for n in lines - biased if "norm" in n and n.endswith("bias")}, family.name


def test_the_plan_travels_and_is_checked(tmp_path):
    source = make_toy("llama", tmp_path / "source")
    plan = rotate(source, whole(source), 36, tmp_path / "out", random_rows(4, 9))
    read = read_plan(tmp_path / "out")
    assert read is not None
    np.testing.assert_array_equal(read.basis, plan.basis)
    assert verify(tmp_path / "out", str(source)).problems == []
    layer = projection(36, 48, hidden_origin(read))
    assert layer is not None
    np.testing.assert_array_equal(layer.weight.detach().numpy(), plan.basis)
    with pytest.raises(AssertionError, match="not orthonormal"):
        Plan(plan.source, plan.target, {}, basis=2 * plan.basis)
    with pytest.raises(AssertionError, match="in place of indices"):
        Plan(plan.source, plan.target, {}, basis=plan.basis[:40])


def test_the_command_measures_rotates_and_distills(toy, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text, {i * 7} words and more of them\n" for i in range(300)))
    measured = ["--data", str(text), "--samples", "8", "--seq-len", "16"]
    line = ["prune", str(toy("llama")), "--hidden", "36", "--compensate", "least-squares", "--rotate"]
    assert minitron([*line, *measured, "--check", "-o", str(tmp_path / "small"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["losses"].keys() == {"source", "compensated"}
    assert minitron(["verify", str(tmp_path / "small"), "--source", str(toy("llama"))]) == 0
    train = ["--data", str(text), "--steps", "2", "--batch", "2", "--seq-len", "16"]
    train += ["--loss", "logits+hidden+embedding"]
    distill = ["distill", str(tmp_path / "small"), "--teacher", str(toy("llama")), *train, "-o", str(tmp_path / "out")]
    assert minitron(distill) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "36", "--rotate"], "--rotate refits what reads"),
        (["--ffn", "56", "--rotate", "--compensate", "least-squares"], "--rotate says how the hidden axis is cut"),
        (["--hidden", "36", "--rotate", "--compensate", "least-squares"], "no input Gram matrices at"),
    ],
)
def test_what_does_not_go_together(toy, tmp_path, capsys, options, message):
    assert minitron(["prune", str(toy("llama")), *options, "-o", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_held_out_readers_lose_less_along_directions_than_by_channels(shared_data, tmp_path):
    """On the real checkpoint and on text that nothing was solved on: what all readers together get wrong."""
    from minitron_cli.data.prepare import token_files
    from minitron_cli.data.source import parse_sources

    source = shared_data / "stories260K"
    text = token_files(parse_sources([str(shared_data / "stories_train.jsonl")]), source, separator="bos")[0]
    checkpoint = open_checkpoint(source)
    seen = open_compensation(measure(source, tmp_path / "a.safetensors", text.windows(np.arange(32), 128), 32), 1e-2)
    rows = text.windows(np.arange(1000, 1032), 128)
    new = open_compensation(measure(source, tmp_path / "b.safetensors", rows, 32), 1e-2)
    plan = by_directions(checkpoint, keep_all(checkpoint.shape), 48, seen)
    state = {name: tensor.double().numpy() for name, tensor in load(source).state_dict().items()}
    mean = sum(np.diagonal(normalised(norm, seen)) for norm in norms_of(checkpoint, plan, seen))
    kept = np.sort(np.argsort(-mean)[:48])
    dropped = np.setdiff1d(np.arange(64), kept)
    lost: dict[str, list[float]] = {"plain": [], "channels": [], "directions": []}
    for norm, other in zip(norms_of(checkpoint, plan, seen), norms_of(checkpoint, plan, new)):
        moment, held = normalised(norm, seen), normalised(other, new)
        maps = {name: np.zeros((64, 64)) for name in lost}
        maps["plain"][kept, kept] = maps["channels"][kept, kept] = 1
        maps["channels"][np.ix_(dropped, kept)] = regression(moment, kept, dropped, 1e-2)
        maps["directions"] = least_squares_map(moment, plan.basis, 1e-2)[0] @ plan.basis.T
        for match in readers_of(checkpoint, norm):
            weight = state[match.name] * norm.weight
            whole = np.sum((weight @ held) * weight)
            for name, found in maps.items():
                off = weight @ (np.eye(64) - found)
                lost[name].append(float(np.sum((off @ held) * off) / whole))
    found = {name: np.mean(values) for name, values in lost.items()}
    assert found["directions"] < 0.7 * found["channels"] < 0.7 * found["plain"], found
