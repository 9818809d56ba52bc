"""Compensated trimming: exact where dropped inputs follow from kept ones, and the source itself where nothing goes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.__main__ import run as minitron
from minitron_cli.checkpoint.moments_file import moments_path, open_moments, pack, unpack
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.data.calibration import calibration_rows
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.errors import MinitronError
from minitron_cli.hf.hooks import find_sites
from minitron_cli.hf.load import load_model
from minitron_cli.hf.process_group import World
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import forward
from minitron_cli.importance.gram_sizes import bytes_of, disk_bytes
from minitron_cli.importance.recorder import Recorder
from minitron_cli.importance.second_moments import SecondMoments
from minitron_cli.prune.compensate import (
    best_ridge,
    check_request,
    open_compensation,
    regression,
    residual,
    unexplained,
)
from minitron_cli.prune.reconstruction import Error, overfit, summary, warnings
from minitron_cli.prune.select import by_residual, eliminate
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Plan
from tests.prune.cutting import difference, load, logits_of, plan_for, sizes_for
from tests.prune.reading import fuse_experts, inputs_of, matrices
from tests.toys import TOY_CONFIGS, keep_all, toy_ids

CPU = torch.device("cpu")


def measure(path: Path, output: Path, rows: np.ndarray, batch_size: int = 3, spans=None) -> Path:
    """Second moments of a model on these rows, as the verb takes them; returns their directory."""
    checkpoint, model = open_checkpoint(path), load_model(path, torch.float32)
    sites = find_sites(checkpoint, model, CPU)
    identity = {"model": {"name": str(path), "digest": source_digest(path)}}
    moments = SecondMoments(checkpoint, output, identity, World())
    recorder = Recorder(sites, moments=moments)
    forward.run(model, sites, Samples(rows, spans).batches(batch_size, CPU), recorder)
    moments.finish()
    return moments_path(output)


def random_rows(samples: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 97, (samples, tokens))


def prune_both(
    source: Path, plan: Plan, moments: Path, tmp_path: Path, ridge: float | None = 1e-9
) -> tuple[Path, Path]:
    """The same cut, compensated and plain."""
    checkpoint = open_checkpoint(source)
    write_pruned(checkpoint, plan, tmp_path / "compensated", compensation=open_compensation(moments, ridge))
    write_pruned(checkpoint, plan, tmp_path / "plain")
    return tmp_path / "compensated", tmp_path / "plain"


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "olmo2", "qwen2_moe"])
def test_moments_are_those_of_what_each_weight_reads(toy, tmp_path, family):
    path, rows = toy(family), random_rows(5, 9)
    found = open_moments(measure(path, tmp_path / "s.safetensors", rows))
    model, inputs = load(path), {}
    modules = dict(model.named_modules())
    for one in found.inputs:
        for reader in one.readers:
            name = reader.removesuffix(".weight")
            if name in modules:
                modules[name].register_forward_pre_hook(lambda m, args, key=reader: inputs.__setitem__(key, args[0]))
    with torch.no_grad():
        model(torch.from_numpy(rows), use_cache=False)
    assert len(inputs) > 3 * 3
    for reader, x in inputs.items():
        x = x.reshape(*rows.shape, -1).double().numpy()
        read = found.read(found.of(reader))
        for half in (0, 1):
            tokens = x[half::2].reshape(-1, x.shape[-1])
            np.testing.assert_allclose(read[half], tokens.T @ tokens / len(tokens), rtol=2e-4, atol=1e-5)


def test_batches_and_padding_change_no_moment(toy, tmp_path):
    rows = random_rows(6, 10)
    one = open_moments(measure(toy("llama"), tmp_path / "a.safetensors", rows, 1))
    all_ = open_moments(measure(toy("llama"), tmp_path / "b.safetensors", rows, 6))
    padded = np.pad(rows, ((0, 0), (0, 4)))
    mask = open_moments(measure(toy("llama"), tmp_path / "c.safetensors", padded, 4, ((0, 10),) * 6))
    for a, b, c in zip(one.inputs, all_.inputs, mask.inputs):
        np.testing.assert_allclose(one.mean(a), np.average(one.read(a), axis=0, weights=a.tokens), rtol=1e-6)
        assert a.readers == b.readers == c.readers
        np.testing.assert_allclose(one.read(a), all_.read(b), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.read(a), mask.read(c), rtol=1e-4, atol=1e-6)


def test_two_symmetric_matrices_share_one_array():
    halves = np.random.default_rng(0).random((2, 7, 7)).astype(np.float32)
    halves += halves.transpose(0, 2, 1)
    assert pack(halves).shape == (7, 8)
    np.testing.assert_array_equal(unpack(pack(halves)), halves)


def test_the_sums_take_what_is_forecast(toy, tmp_path):
    checkpoint = open_checkpoint(toy("llama"))
    found = open_moments(measure(toy("llama"), tmp_path / "s.safetensors", random_rows(2, 5)))
    widths = [found.read(one).shape[1] for one in found.inputs if one.layer is not None]
    assert bytes_of(checkpoint) == (2 * 8 * sum(n * n for n in widths), 2 * 8 * sum(n * n for n in widths) // 3)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "s.moments").glob("*.safetensors"))
    assert disk_bytes(checkpoint) <= on_disk < disk_bytes(checkpoint) + 4096  # headers


def test_the_regression_is_the_least_squares_solution():
    x = np.random.default_rng(0).standard_normal((50, 12))
    weight = np.random.default_rng(1).standard_normal((5, 12))
    kept, dropped = np.arange(0, 12, 2), np.arange(1, 12, 2)
    moment = x.T @ x / len(x)
    found = weight[:, kept] + weight[:, dropped] @ regression(moment, kept, dropped, 0.0)
    best = np.linalg.lstsq(x[:, kept], x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found, best, atol=1e-9)
    np.testing.assert_allclose(found, weight @ moment[:, kept] @ np.linalg.inv(moment[np.ix_(kept, kept)]), atol=1e-9)


def test_with_everything_kept_the_model_is_the_source_bit_for_bit(toy, tmp_path):
    source = toy("llama")
    moments = measure(source, tmp_path / "s.safetensors", random_rows(4, 9))
    checkpoint = open_checkpoint(source)
    write_pruned(
        checkpoint, keep_all(checkpoint.shape), tmp_path / "same", compensation=open_compensation(moments, 1e-2)
    )
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def dependent(model: torch.nn.Module, axis: str) -> None:
    """Make the odd units of an axis follow from the even ones: neurons twice them, heads and channels equal to them."""
    state = model.state_dict()
    for name, tensor in state.items():
        if axis == "ffn" and name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensor[1::2] = tensor[::2] * (2 if "up_proj" in name else 1)
        if axis == "head" and name.endswith("q_proj.weight"):
            heads = tensor.view(6, -1, tensor.shape[-1])
            heads[1:3], heads[4:6] = heads[:1], heads[3:4]  # 2 KV groups of 3
        if axis == "hidden":
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor[1::2] = tensor[::2]
            elif "norm" in name:
                tensor[1::2] = 1.5 * tensor[::2]
            elif "embed" in name:
                tensor[:, 1::2] = tensor[:, ::2]


@pytest.mark.parametrize(
    ("axis", "sizes", "kept"),
    [
        ("ffn", {"ffn": 44}, np.tile(np.arange(0, 88, 2), (3, 1))),
        ("head", {"head": 2}, np.tile(np.array([0, 3]), (3, 1))),
        ("hidden", {"hidden": 24}, np.arange(0, 48, 2)),
    ],
)
def test_exact_where_the_dropped_follow_from_the_kept(toy, tmp_path, axis, sizes, kept):
    model = load(toy("llama"))
    with torch.no_grad():
        dependent(model, axis)
    source = tmp_path / "source"
    model.save_pretrained(source)
    checkpoint = open_checkpoint(source)
    plan = Plan(checkpoint.shape, checkpoint.shape.with_(**sizes), {axis: kept})
    moments = measure(source, tmp_path / "s.safetensors", random_rows(16, 16))
    compensated, plain = prune_both(source, plan, moments, tmp_path)
    expected = logits_of(source, toy_ids(2, 13))
    assert difference(logits_of(compensated, toy_ids(2, 13)), expected) < 1e-3
    assert difference(logits_of(plain, toy_ids(2, 13)), expected) > 0.05


EXPERTS = ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe"]


@pytest.mark.parametrize(
    ("family", "fused"), [*((family, False) for family in TOY_CONFIGS), *((family, True) for family in EXPERTS)]
)
def test_every_cut_matrix_is_the_least_squares_solution(toy, tmp_path, family, fused):
    """Against torch.linalg.lstsq on the activations themselves: every axis, and experts fused on disk or not."""
    source, rows = toy(family), random_rows(24, 16)
    source = fuse_experts(source, tmp_path / "fused") if fused else source
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes_for(family, "all"))
    moments = measure(source, tmp_path / "s.safetensors", rows)
    compensated, plain = map(load, prune_both(source, plan, moments, tmp_path))
    model = load(source)
    inputs, refitted = inputs_of(model, rows), set()
    for (key, kept, weight, found), (_, _, _, trimmed) in zip(
        matrices(model, compensated, plan), matrices(model, plain, plan)
    ):
        wanted = inputs[key] @ weight.T
        best = torch.linalg.lstsq(inputs[key][:, kept], wanted, driver="gelsd").solution.T
        least, ours, without = (float((inputs[key][:, kept] @ w.T - wanted).norm()) for w in (best, found, trimmed))
        enough = len(inputs[key]) >= len(kept)  # else nothing worse than plain trimming
        assert ours <= (1.0001 * least + 1e-4 * without if enough else 1.0001 * without), key
        refitted.add(key[0])
    states = compensated.state_dict(), plain.state_dict()
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert len(refitted) >= 2 * 3
    assert not {name for name in changed if "norm" in name or "embed_" in name}


def test_held_out_error_is_never_above_that_of_plain_trimming(shared_data, tmp_path):
    source = shared_data / "stories260K"
    text = token_files(parse_sources([str(shared_data / "stories_train.jsonl")]), source, separator="bos")[0]
    seen = open_moments(measure(source, tmp_path / "a.safetensors", text.windows(np.arange(32), 128), 32))
    new = open_moments(measure(source, tmp_path / "b.safetensors", text.windows(np.arange(1000, 1032), 128), 32))
    for one, other in zip(seen.inputs, new.inputs):
        moment, held = seen.read(one).mean(0), new.read(other).mean(0)
        kept = np.sort(np.argsort(-np.diagonal(moment))[: len(moment) * 3 // 4])
        dropped = np.setdiff1d(np.arange(len(moment)), kept)
        error = residual(held, kept, dropped, regression(moment, kept, dropped, 1e-2))
        assert error < residual(held, kept, dropped, np.zeros((len(dropped), len(kept)))), one


def test_auto_chooses_plain_trimming_where_nothing_can_be_predicted():
    generator = np.random.default_rng(0)
    halves = np.stack([x.T @ x / len(x) for x in generator.standard_normal((2, 14, 10))])
    kept, dropped = np.arange(8), np.arange(8, 10)
    assert best_ridge(halves, kept, dropped) == np.inf
    mixed = generator.standard_normal((2, 500, 8)) @ generator.standard_normal((8, 10))
    halves = np.stack([x.T @ x / len(x) for x in mixed])
    assert best_ridge(halves, kept, dropped) == 1e-4


def test_a_neuron_that_one_half_never_fires_does_not_decide_the_ridge():
    """Relative to its own mean square, which is 0, any error would be infinite for every ridge."""
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((2, 500, 8)) @ generator.standard_normal((8, 10))
    mixed[0, :, 9] = 0
    halves = np.stack([x.T @ x / len(x) for x in mixed])
    kept, dropped = np.arange(8), np.arange(8, 10)
    assert np.isfinite(residual(halves[0], kept, dropped, regression(halves[1], kept, dropped, 1e-2)))


def test_an_expert_with_few_tokens_is_trimmed_plainly_rather_than_fitted_to_them(toy, tmp_path):
    source = toy("qwen3_moe")
    compensation = open_compensation(measure(source, tmp_path / "s.safetensors", random_rows(1, 12)), 1e-2)
    checkpoint = open_checkpoint(source)
    manifest = write_pruned(
        checkpoint, plan_for(checkpoint, {"expert_ffn": 16}), tmp_path / "out", compensation=compensation
    )
    assert set(manifest["compensation"]["chosen"].values()) == {None}  # the other half of the samples is empty
    ratios = set(manifest["compensation"]["reconstruction"]["expert_ffn"].values())
    assert ratios == {0.0, 1.0}  # 0 where no token came by
    assert "Infinity" not in (tmp_path / "out" / "minitron.json").read_text()


def test_verify_derives_a_compensated_model_again(toy, tmp_path):
    source = toy("llama")
    moments = measure(source, tmp_path / "s.safetensors", random_rows(4, 9))
    compensated, _ = prune_both(source, plan_for(open_checkpoint(source), {"hidden": 36}), moments, tmp_path, None)
    assert verify(compensated, str(source)).problems == []
    other = measure(source, tmp_path / "t.safetensors", random_rows(4, 9, seed=1))
    with pytest.raises(MinitronError, match="does not hold the input Gram matrices"):
        verify(compensated, str(source), moments=other)
    moments.rename(tmp_path / "away")
    with pytest.raises(MinitronError, match="no input Gram matrices at"):
        verify(compensated, str(source))
    assert verify(compensated, str(source), moments=tmp_path / "away").problems == []


def test_moments_of_another_model_are_refused(toy, tmp_path):
    moments = measure(toy("llama"), tmp_path / "s.safetensors", random_rows(2, 5))
    checkpoint = open_checkpoint(toy("llama", seed=5))
    plan = plan_for(checkpoint, {"ffn": 56})
    with pytest.raises(MinitronError, match="measured on another model"):
        write_pruned(checkpoint, plan, tmp_path / "out", compensation=open_compensation(moments, 1e-2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("lstsq", "1e-2"), "'lstsq' is unknown"),
        (("none", "-1"), "--ridge -1 is not a ridge"),
        (("least-squares", "much"), "--ridge much is not a ridge"),
        (("none", "auto", "residual"), "there is none"),
        (("least-squares", "auto", "loss"), "--select 'loss' is unknown"),
    ],
)
def test_what_does_not_go_together_is_refused(request_, message):
    with pytest.raises(MinitronError, match=message):
        check_request(*request_)


def test_elimination_finds_the_neurons_that_all_others_follow_from():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 6)) @ generator.standard_normal((6, 18))
    x[:, ::3] = x[:, 1::3] * 1e-3  # the least active ones tell nothing that others do not
    moment, weight = x.T @ x / len(x), generator.standard_normal((5, 18))
    kept = eliminate(weight, moment, 6, 1e-9)
    dropped = np.setdiff1d(np.arange(18), kept)
    compensated = weight[:, kept] + weight[:, dropped] @ regression(moment, kept, dropped, 1e-9)
    np.testing.assert_allclose(x[:, kept] @ compensated.T, x @ weight.T, atol=1e-3)


@pytest.mark.parametrize("dtype", ["double", "single"])
def test_elimination_is_that_by_a_new_inverse_each_round(monkeypatch, dtype):
    """Against P = C^-1 and W = W_0 C_:K C_KK^-1 of the neurons that are left, computed anew for each round."""
    if dtype == "single":
        monkeypatch.setattr("minitron_cli.prune.select.DOUBLE", 0)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2000, 40)) @ generator.standard_normal((40, 200))
    x = (x + generator.standard_normal(x.shape)) * generator.uniform(0.01, 10, 200)
    moment, weight, left = x.T @ x / len(x), generator.standard_normal((30, 200)), np.arange(200)
    ridged = moment + np.diag(1e-2 * np.diagonal(moment))
    while len(left) > 70:
        inverse = np.linalg.inv(ridged[np.ix_(left, left)])
        cost = np.square(weight @ ridged[:, left] @ inverse).sum(0) / np.diagonal(inverse)
        left = np.delete(left, np.argsort(cost, kind="stable")[: min(3, len(left) - 70)])
    np.testing.assert_array_equal(eliminate(weight, moment, 70, 1e-2), left)


def test_what_a_regression_leaves_is_known_without_another_product():
    x = np.random.default_rng(0).standard_normal((80, 12)) @ np.random.default_rng(1).standard_normal((12, 12))
    moment, kept, dropped = x.T @ x / len(x), np.arange(0, 12, 2), np.arange(1, 12, 2)
    for ridge in (0.0, 1e-2, 1.0, np.inf):
        solved = regression(moment, kept, dropped, ridge)
        left = np.square(x[:, dropped] - x[:, kept] @ solved.T).mean(0) / np.square(x[:, dropped]).mean(0)
        np.testing.assert_allclose(unexplained(moment, kept, dropped, ridge, solved), left.sum(), rtol=1e-9)


def test_the_error_forecast_for_new_tokens_is_the_one_they_have():
    """Akaike's factor against fresh samples of the same distribution, of which nothing was solved."""
    generator, mix = np.random.default_rng(0), np.random.default_rng(1).standard_normal((60, 60))
    old, new = generator.standard_normal((150, 60)) @ mix, generator.standard_normal((20000, 60)) @ mix
    moment, kept, dropped = old.T @ old / len(old), np.arange(50), np.arange(50, 60)
    solved = regression(moment, kept, dropped, 0.0)
    found = residual(new.T @ new / len(new), kept, dropped, solved)
    left = unexplained(moment, kept, dropped, 0.0, solved)
    assert 0.8 * found < left * overfit(150, 50, 0.0) < 1.25 * found
    assert left < 0.6 * found


def test_layers_where_compensation_loses_more_are_named():
    errors = {
        ("ffn", 0, None): Error(3.0, 10.0),
        ("ffn", 2, None): Error(12.0, 10.0),
        ("expert_ffn", 1, 4): Error(1, 2),
    }
    found = summary(errors)
    assert found == {"expert_ffn": {"1.4": 0.5}, "ffn": {"0": 0.3, "2": 1.2}}
    (line,) = warnings(found)
    assert line.startswith("ffn of layer 2 (1.20) loses more than by plain trimming")


def test_the_manifest_holds_what_is_lost_of_every_cut_input(toy, tmp_path):
    source = toy("llama")
    moments = measure(source, tmp_path / "s.safetensors", random_rows(24, 16))
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, {"hidden": 36, "ffn": 56, "head": 4})
    manifest = write_pruned(checkpoint, plan, tmp_path / "out", compensation=open_compensation(moments, 1e-2))
    found = manifest["compensation"]["reconstruction"]
    assert found.pop("logits").keys() == {"all"}
    assert found.keys() == {"ffn", "head", "hidden (mlp)", "hidden (self_attn)"}
    assert all(ratios.keys() == {"0", "1", "2"} for ratios in found.values())
    assert all(0 < ratio < 1.5 for ratios in found.values() for ratio in ratios.values())


def test_check_puts_the_losses_of_plain_and_compensated_side_by_side(toy, tmp_path, capsys):
    """Against both cuts written and loaded, on the windows that the check draws."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text, {i * 7} words and more of them\n" for i in range(300)))
    line = ["prune", str(toy("llama")), "--ffn", "44", "--data", str(text)]
    compensated = [*line, "--samples", "8", "--seq-len", "64", "--compensate", "least-squares", "--json"]
    assert minitron([*compensated, "--check", "-o", str(tmp_path / "out")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["reconstruction"].keys() == {"ffn"}
    scores = str(tmp_path / "out.scores.safetensors")
    assert minitron([*line, "--scores", scores, "-o", str(tmp_path / "plain")]) == 0
    files = token_files(parse_sources([str(text)]), toy("llama"))
    rows = torch.from_numpy(calibration_rows(files, (1.0,), 16, 128, 1, allow_fewer=True)[0])
    for name, path in (("source", toy("llama")), ("plain", tmp_path / "plain"), ("compensated", tmp_path / "out")):
        with torch.no_grad():
            expected = float(load(path)(rows, labels=rows).loss)
        assert facts["check"]["losses"][name] == pytest.approx(expected, rel=1e-4)


def test_selection_by_residual_loses_less_than_by_scores(toy, tmp_path):
    source, checkpoint = toy("llama"), open_checkpoint(toy("llama"))
    moments = measure(source, tmp_path / "s.safetensors", random_rows(32, 16))
    by = open_compensation(moments, 1e-2)
    plan = plan_for(checkpoint, {"ffn": 56, "layer": 2})
    chosen = by_residual(checkpoint, plan, by)
    assert chosen.kept["ffn"].shape == plan.kept["ffn"].shape
    np.testing.assert_array_equal(chosen.kept["layer"], plan.kept["layer"])
    for layer in range(2):
        name = f"model.layers.{plan.source_layer(layer)}.mlp.down_proj.weight"
        moment, weight = by.moments.read(by.moments.of(name)).mean(0), load(source).state_dict()[name].double().numpy()
        errors = [lost(weight, moment, p.kept["ffn"][layer]) for p in (chosen, plan)]
        assert errors[0] < 0.9 * errors[1]
    with pytest.raises(MinitronError, match="none are cut"):
        by_residual(checkpoint, plan_for(checkpoint, {"hidden": 36}), by)


def lost(weight: np.ndarray, moment: np.ndarray, kept: np.ndarray) -> float:
    """Mean squared error of a compensated map's output."""
    dropped = np.setdiff1d(np.arange(len(moment)), kept)
    off = np.zeros_like(weight)
    off[:, dropped] = weight[:, dropped]
    off[:, kept] = -weight[:, dropped] @ regression(moment, kept, dropped, 1e-2)
    return float(((off @ moment) * off).sum())


@pytest.mark.parametrize(("family", "sizes"), [("nemotron_h", {"ffn": 56}), ("bamba", {"ffn": 56, "mamba_dim": 6})])
def test_selection_by_residual_is_for_layers_that_have_the_neurons(toy, tmp_path, family, sizes):
    """Layers without neurons keep the rows that mean nothing; channels of Mamba heads are no neurons."""
    checkpoint = open_checkpoint(toy(family))
    by = open_compensation(measure(toy(family), tmp_path / "s.safetensors", random_rows(32, 16)), 1e-2)
    plan = plan_for(checkpoint, sizes)
    chosen = by_residual(checkpoint, plan, by)
    changed = {axis for axis in plan.kept if not np.array_equal(plan.kept[axis], chosen.kept[axis])}
    assert changed == {"ffn"}
    layers = [
        i for i, (one, other) in enumerate(zip(plan.kept["ffn"], chosen.kept["ffn"])) if not np.array_equal(one, other)
    ]
    assert set(layers) <= set(checkpoint.shape.layers_of("ffn"))


def test_two_passes_to_one_place_do_not_mix(toy, tmp_path):
    """One writes a layer, another all of its own, and the first the rest: what is found is the whole of the first."""
    path, output, rows = toy("llama"), tmp_path / "s.safetensors", random_rows(4, 8)
    alone = open_moments(measure(path, tmp_path / "alone.safetensors", rows))
    checkpoint, model = open_checkpoint(path), load_model(path, torch.float32)
    sites = find_sites(checkpoint, model, CPU)
    first = SecondMoments(checkpoint, output, {}, World())
    forward.run(model, sites, Samples(rows).batches(3, CPU), Recorder(sites, moments=first))
    first.close(0)
    measure(path, output, random_rows(4, 8, seed=1))
    first.finish()
    found = open_moments(moments_path(output))
    for one, other in zip(found.inputs, alone.inputs):
        np.testing.assert_array_equal(found.read(one), alone.read(other))
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
