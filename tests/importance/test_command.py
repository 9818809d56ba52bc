"""The command: its file, what it finds again, what it refuses and in which words."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.checkpoint.writer import TensorOut, header_bytes, shard_names, shards, write_index
from minitron_cli.cli.app import app
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.hf.samples import Samples
from minitron_cli.importance import depth, resident
from minitron_cli.importance.curves import Judge
from minitron_cli.importance.forecast import forecast
from minitron_cli.importance.options import Options
from minitron_cli.importance.run import measure
from minitron_cli.importance.samples import draw
from minitron_cli.prune.preflight import prune_facts
from minitron_cli.spec.axes import size
from minitron_cli.spec.counts import parse_bytes
from minitron_cli.spec.shape import shape_of
from tests.toys import toy_config, toy_ids, toy_tokenizer


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"story {i}: the {'very ' * (i % 5)}old cat sat"}) + "\n" for i in range(60))
    )
    return str(file)


@pytest.fixture
def options(text):
    return Options(data=(text,), samples=6, seq_len=16, separator="none", batch_size=3)


def no_pass(monkeypatch):
    """From here on, forward passes are an error."""
    monkeypatch.setattr(resident, "run", lambda *args: pytest.fail("the pass was made again"))


def test_the_file_carries_its_identity(toy, options, tmp_path):
    result = measure(toy("llama"), options, tmp_path / "s")
    scores, raw = read_scores(tmp_path / "s")
    assert result.made == "measured"
    assert scores.provenance["model"] == {"name": str(toy("llama")), "digest": source_digest(toy("llama"))}
    expected = {"samples": 6, "seq_len": 16, "seed": 0, "dtype": "float32", "metric": "activation"}
    assert {key: scores.provenance[key] for key in expected} == expected
    assert scores.provenance["aggregation"] == {"batch": "l2", "seq": "mean"}
    assert len(scores.provenance["tokenizer"]) == 64
    assert raw["count"].tolist() == [3, 3]
    assert {axis: array.shape for axis, array in scores.values.items()} == {
        "hidden": (48,), "ffn": (3, 88), "head": (3, 6), "layer": (3,),
    }  # fmt: skip


def test_a_finished_pass_is_found_and_other_aggregations_need_none(toy, options, tmp_path, monkeypatch):
    measure(toy("llama"), options, tmp_path / "s")
    fresh = measure(toy("llama"), replace(options, batch_agg="mean", seq_agg="l2"), tmp_path / "fresh")
    no_pass(monkeypatch)
    before = (tmp_path / "s").stat().st_mtime_ns
    assert measure(toy("llama"), options, tmp_path / "s").made == "found"
    assert (tmp_path / "s").stat().st_mtime_ns == before
    again = measure(toy("llama"), replace(options, batch_agg="mean", seq_agg="l2"), tmp_path / "s")
    assert again.made == "aggregated"
    for axis, values in fresh.scores.values.items():
        np.testing.assert_array_equal(read_scores(tmp_path / "s")[0].values[axis], values)


def test_a_depth_curve_is_added_to_what_is_known(toy, options, tmp_path, monkeypatch):
    measure(toy("llama"), options, tmp_path / "s")
    no_pass(monkeypatch)
    result = measure(toy("llama"), replace(options, depth_blocks=(1, 2), layer_score="kl"), tmp_path / "s")
    scores, raw = read_scores(tmp_path / "s")
    assert result.made == "measured"
    assert {name for name in raw if name.startswith("depth.")} == {"depth.loss.1", "depth.loss.2", "depth.kl.1"}
    np.testing.assert_array_equal(scores.values["layer"], raw["depth.kl.1"])
    assert scores.provenance["depth"]["loss.2"]["passes"] == pytest.approx(1 + 1 / 3)
    # All three layers: 1 + (2 + 1 + 0) / 3 passes; one gone: 2 layers and then 1 + 0, of 3.
    foreseen = forecast(open_checkpoint(toy("llama")), replace(options, depth_greedy=2))
    assert foreseen["depth_passes"] == pytest.approx(2 + (2 + 1) / 3)
    assert measure(toy("llama"), replace(options, layer_score="kl"), tmp_path / "s").made == "found"


def test_a_task_judges_blocks(toy, options, tmp_path, monkeypatch):
    """A judge that only knows the loss must draw the loss' own curve, upside down."""
    ids = toy_ids(2, 10)

    def score(model, device):
        with torch.no_grad():
            return -float(model(input_ids=ids, labels=ids).loss)

    judged = replace(options, depth_blocks=(1,), depth_task="exam")
    result = measure(toy("llama"), judged, tmp_path / "s", judge=Judge("exam", "version 1", score))
    _, raw = read_scores(tmp_path / "s")
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).eval()
    batches = Samples(ids.numpy()).batches(2, torch.device("cpu"))
    swept = depth.sweep(model, list(model.model.layers), batches, depth.contiguous(range(3), 1))
    np.testing.assert_allclose(raw["depth.exam.1"], -swept.values, rtol=1e-5)
    fact = result.scores.provenance["depth"]["exam.1"]
    assert fact["best"]["layers"] == [swept.best]
    assert fact["full"] == pytest.approx(-swept.full, rel=1e-5)
    no_pass(monkeypatch)
    silent = Judge("exam", "version 1", lambda model, device: pytest.fail("judged again"))
    assert measure(toy("llama"), judged, tmp_path / "s", judge=silent).made == "found"
    assert measure(toy("llama"), judged, tmp_path / "s", judge=Judge("exam", "version 2", score)).made == "measured"


@pytest.mark.slow
def test_a_task_of_the_harness(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # where the tasks' data paths count from
    line = ["importance", str(shared_data / "stories260K"), "--data", str(shared_data / "stories_train.jsonl")]
    line += ["--samples", "8", "--seq-len", "64", "--separator", "bos", "--depth-block", "1", "--json"]
    line += ["--depth-task", "stories_next", "--include", str(shared_data / "tasks"), "--task-limit", "20"]
    made = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "s")])
    assert made.exit_code == 0, made.output
    fact = json.loads(made.stdout.splitlines()[-1])["depth"]["stories_next.1"]
    assert 0 <= fact["best"]["value"] <= 1
    assert fact["full"] * 20 == pytest.approx(round(fact["full"] * 20))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"samples": 5}, "samples: 6 there, 5 here"),
        ({"seq_len": 12}, "seq_len: 16 there, 12 here"),
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"dtype": "bfloat16"}, "dtype: float32 there, bfloat16 here"),
        ({"separator": "eos"}, "data sources"),
        ({"metric": "random"}, "metric: activation there, random here"),
    ],
)
def test_scores_made_otherwise_are_refused_by_name(toy, options, tmp_path, change, named):
    measure(toy("llama"), options, tmp_path / "s")
    with pytest.raises(MinitronError) as refused:
        measure(toy("llama"), replace(options, **change), tmp_path / "s")
    assert named in refused.value.message
    assert "--force" in refused.value.hint


def test_force_measures_again_and_is_recorded(toy, options, tmp_path):
    measure(toy("llama"), options, tmp_path / "s")
    measure(toy("mistral"), replace(options, force=True), tmp_path / "s")
    scores, _ = read_scores(tmp_path / "s")
    assert scores.provenance["model"]["name"] == str(toy("mistral"))
    assert any(difference.startswith("model: ") for difference in scores.provenance["forced"])


def test_too_little_data_says_how_much_there_is(toy, options, tmp_path):
    with pytest.raises(MinitronError, match=r"has \d+ windows of 16 tokens") as refused:
        measure(toy("llama"), replace(options, samples=5000), tmp_path / "s")
    assert "--allow-fewer" in refused.value.hint
    result = measure(toy("llama"), replace(options, samples=5000, allow_fewer=True), tmp_path / "s")
    assert 6 < result.scores.provenance["samples"] < 5000


def test_samples_longer_than_the_context_are_refused(toy, options, tmp_path):
    with pytest.raises(MinitronError, match=r"--seq-len 129 is longer than the context of .* \(128 positions\)"):
        measure(toy("llama"), replace(options, seq_len=129), tmp_path / "s")


def test_a_tokenizer_of_another_model_is_refused(toy, options, tmp_path):
    model = shutil.copytree(toy("llama"), tmp_path / "model")
    toy_tokenizer(99).save_pretrained(model)
    (tmp_path / "tilde.txt").write_text("~" * 400)
    with pytest.raises(MinitronError, match=r"the calibration text holds token id 98, .* has 97 embeddings"):
        measure(model, replace(options, data=(str(tmp_path / "tilde.txt"),)), tmp_path / "s")


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_nan_activations_name_the_layer(toy, options, tmp_path, mode):
    model = shutil.copytree(toy("llama"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 3] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(MinitronError, match=r"activations of layer 1 are NaN or infinite \(ffn, layer, norm_ratio\)"):
        measure(model, replace(options, mode=mode), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": "vibes"}, "--metric must be one of activation, .*; got 'vibes'"),
        ({"mode": "fast"}, "--mode must be one of auto, .*; got 'fast'"),
        ({"depth_metric": "x"}, "--depth-metric must be one of loss, .*; got 'x'"),
        ({"seq_agg": "max"}, "--seq-agg must be one of mean, .*; got 'max'"),
        ({"device_map": "x"}, "--device-map must be one of auto, .*; got 'x'"),
        ({"samples": 0}, "--samples must be at least 1; got 0"),
        ({"samples": 10**12}, "--samples must be at most"),
        ({"batch_size": -1}, "--batch-size must be at least 1; got -1"),
        ({"seed": 2**32}, "--seed must be at most"),
        ({"depth_greedy": -1}, "--depth-greedy must be at least 0; got -1"),
        ({"depth_blocks": (1, 0)}, r"--depth-block must be at least 1; got \(1, 0\)"),
        ({"memory": 0}, "--memory must be at least 1; got 0"),
        ({"data": ()}, "there is no calibration data"),
        ({"metric": "random", "depth_blocks": (1,)}, "no forward passes"),
        ({"depth_task": "piqa"}, "--depth-task needs the sizes"),
    ],
)
def test_options_that_make_no_sense(options, change, named):
    with pytest.raises(MinitronError, match=named):
        replace(options, **change)


@pytest.mark.parametrize("change", [{"depth_greedy": 3}, {"depth_blocks": (1, 7)}])
def test_a_sweep_that_leaves_no_layer_is_refused_before_the_pass(toy, options, tmp_path, change, monkeypatch):
    no_pass(monkeypatch)
    with pytest.raises(MinitronError, match=r"--depth-\w+ \d leaves nothing of 3 layers"):
        measure(toy("llama"), replace(options, **change), tmp_path / "s")


def test_a_batch_is_no_larger_than_the_samples(toy, options, tmp_path):
    said = []
    measure(toy("llama"), replace(options, batch_size=2**20), tmp_path / "s", said.append)
    assert "batches of 6" in said[0]


def test_layers_can_be_ranked_by_the_ratio_of_norms(toy, options, tmp_path, monkeypatch):
    """Mean over samples and tokens of |x_out| / |x_in| of each block, from transformers' own hidden states."""
    measured = measure(toy("llama"), replace(options, layer_score="norm-ratio"), tmp_path / "s")
    model = AutoModelForCausalLM.from_pretrained(toy("llama")).eval()
    states = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, args, out: states.append((args[0], out)))
    samples, _ = draw(open_checkpoint(toy("llama")), options)
    with torch.no_grad():
        model(torch.from_numpy(samples.rows))
    expected = [float((out.norm(dim=-1) / x.norm(dim=-1)).mean()) for x, out in states]
    np.testing.assert_allclose(measured.scores.values["layer"], expected, rtol=1e-5)
    no_pass(monkeypatch)
    assert measure(toy("llama"), options, tmp_path / "s").made == "aggregated"
    assert not np.allclose(measure(toy("llama"), options, tmp_path / "s").scores.values["layer"], expected)


def test_options_of_the_task_without_a_task_are_refused(toy, text, tmp_path):
    line = ["importance", str(toy("llama")), "--data", text, "-o", str(tmp_path / "s"), "--include", "/nope"]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, MinitronError)
    assert "--depth-task" in result.exception.message


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 10**9), ("512mb", 512 * 10**6), ("2GiB", 2 << 30), ("1.5T", 1_500_000_000_000)]
)
def test_sizes_are_read_the_same_everywhere(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8B", "-1GB", "lots", "0", "1e99GB", ""])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(MinitronError, match="is not a size"):
        parse_bytes(text)


def test_the_command_line(toy, text, tmp_path):
    line = ["importance", str(toy("llama")), "--data", text, "--samples", "6", "--seq-len", "16", "--separator", "none"]
    line += ["-o", str(tmp_path / "s")]
    dry = CliRunner().invoke(app, [*line, "--dry-run", "--json"])
    assert json.loads(dry.stdout)["tokens"] == 96
    assert not (tmp_path / "s").exists()
    made = CliRunner().invoke(app, [*line, "--depth-block", "1"])
    assert made.exit_code == 0
    assert made.stdout.splitlines()[-1].startswith(f"next: minitron prune {toy('llama')}")
    found = CliRunner().invoke(app, [*line, "--json"])
    facts = json.loads(found.stdout)
    assert facts["made"] == "found"
    assert facts["stability"].keys() == {"hidden", "ffn", "head", "layer"}
    assert len(facts["depth"]["loss.1"]["best"]["layers"]) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--samples", "9999"], "too little calibration data"),
        (["--memory", "1KB"], "even one block at a time takes"),
        (["--seq-len", "9999"], "longer than the context"),
        (["--depth-block", "1", "--depth-task", "nosuch"], "no such task: nosuch"),
        (["-o", "/proc/scores"], "/proc takes no files"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_dry_run_refuses_what_the_run_refuses(toy, text, tmp_path, wrong, told, dry):
    line = ["importance", str(toy("llama")), "--data", text, "--samples", "6", "--seq-len", "16", "--separator", "none"]
    result = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "s"), *wrong, *dry])
    assert isinstance(result.exception, MinitronError)
    assert told in result.exception.message
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]


def test_a_dry_run_counts_gram_matrices_and_greedy_sweeps(toy, text, tmp_path):
    model, plain = open_checkpoint(toy("llama")), Options(data=(text,), samples=6, seq_len=16)
    shape, layers = model.shape, model.shape["layer"]
    grams = [n * n for n in (shape["hidden"], shape["hidden"], shape["head"] * shape["head_dim"], shape["ffn"])]
    before, after = forecast(model, plain), forecast(model, replace(plain, second_moments=True, depth_greedy=2))
    assert after["resident_memory"] - before["resident_memory"] == 2 * 8 * layers * sum(grams), "two halves, float64"
    assert after["streamed_memory"] - before["streamed_memory"] == 2 * 8 * sum(grams), "of one layer"
    assert after["second_moments_bytes"] > 4 * layers * sum(grams)
    runs = [layers + sum(range(layers)), layers - 1 + sum(range(layers - 1))]  # the full pass, each layer left out
    assert after["depth_passes"] == pytest.approx(sum(runs) / layers, abs=0.01)
    line = ["importance", str(model.path), "--data", text, "--samples", "6", "--seq-len", "16", "--dry-run"]
    shown = CliRunner().invoke(app, [*line, "--second-moments", "-o", str(tmp_path / "s")])
    assert re.search(r"memory, whole model +[\d.]+ MB", shown.stdout)
    assert re.search(r"Gram matrices on disk +[\d.]+ [KM]B", shown.stdout)


def test_a_greedy_sweep_shows_how_far_it_is(toy, options, tmp_path):
    seen = []
    asked = replace(options, depth_greedy=2)
    measure(toy("llama"), asked, tmp_path / "s", show=lambda fraction, rate: seen.append((fraction, rate)))
    swept = [fraction for fraction, rate in seen if not rate]
    assert swept == sorted(swept)
    assert len(swept) > 2
    assert swept[-1] == pytest.approx(1)


def test_what_a_mixture_of_120_billion_parameters_would_take(tmp_path, text):
    """Its files are there by their headers, and hold nothing: what importance and a cut of its experts would take."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 20, "num_hidden_layers": 34}
    config = toy_config("mixtral", **sizes, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    model = tmp_path / "model"
    config.save_pretrained(model)
    toy_tokenizer(97).save_pretrained(model)
    family, shape = family_of("mixtral"), shape_of(family_of("mixtral"), config.to_dict())
    parts = [
        TensorOut(
            weight.format(layer=layer, expert=expert), "BF16", tuple(size(dim, shape.sizes) for dim in weight.dims)
        )
        for weight in family.expected(config.to_dict())
        for layer in range(shape["layer"] if "layer" in weight.name_axes else 1)
        for expert in range(shape["expert"] if "expert" in weight.name_axes else 1)
    ]
    cut = shards(parts)
    for name, part in zip(shard_names(len(cut)), cut):
        header = header_bytes(part)
        with (model / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + sum(tensor.num_bytes for tensor in part))
    write_index(model, cut)
    facts = forecast(open_checkpoint(model), Options(data=(text,), samples=512, seq_len=128))
    layer = 20 * 3 * 4096 * 14336 + 2 * 4096 * 4096 + 2 * 4096 * 1024 + 20 * 4096 + 2 * 4096
    assert facts["weight_bytes"] == 2 * (34 * layer + 2 * 97 * 4096 + 4096) > 2 * 119e9
    assert facts["states_bytes"] == 512 * 128 * 4096 * 4
    assert 2 * 4 * layer < facts["streamed_memory"] < facts["weight_bytes"] / 4
    assert facts["resident_memory"] > 2 * facts["weight_bytes"], "in float32"
    assert prune_facts(open_checkpoint(model), shape.with_(expert=10), tmp_path / "small").peak_memory < 1e9
