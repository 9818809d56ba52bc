"""Pruning a quantised checkpoint is pruning the plain one that it stands for, bit for bit."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.__main__ import run as main
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.checkpoint.tensors import read_tensor
from minitron_cli.checkpoint.values import read_bits
from minitron_cli.errors import MinitronError
from minitron_cli.prune import trim
from minitron_cli.prune.execute import PruneResult, dry_run, prune
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from tests.prune.cutting import logits_of, plan_for, sizes_for
from tests.quantising import QUANTISED, RAGGED, quantise_fp8, quantise_mxfp4
from tests.wrapped import make_wrapped

Toy = Callable[..., Path]
Pair = Callable[[str], Path]


def no_measuring(wanted: object) -> None:
    raise AssertionError("nothing is to be measured")


def run(source: Path, output: Path, **options: object) -> PruneResult:
    request = PruneRequest(model=str(source), output=output, **options)  # type: ignore[arg-type]
    return prune(request, no_measuring)


def same_weights(one: Path, other: Path) -> None:
    found, expected = (load_file(path / "model.safetensors") for path in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", QUANTISED)
def test_nothing_cut_is_the_plain_model(case: str, pair: Pair, tmp_path: Path) -> None:
    source = pair(case) / "quantised"
    run(source, tmp_path / "out", dequantize=True)
    same_weights(tmp_path / "out", pair(case) / "plain")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = json.loads((pair(case) / "plain" / "config.json").read_text())
    predictors = {
        "num_nextn_predict_layers"
    } & expected.keys()  # no layer predicts beyond the next token: now it says so
    assert config == {**expected, **dict.fromkeys(predictors, 0)}
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["inputs"]["model"]["digest"] == source_digest(source)
    assert manifest["inputs"]["model"]["dequantised"]["dtype"] == "bfloat16"
    found = verify(tmp_path / "out", source=str(source), forward=True)
    assert not found.problems


@pytest.mark.parametrize("case", QUANTISED)
@pytest.mark.parametrize("block_bytes", [700, trim.BLOCK_BYTES])
def test_a_cut_is_that_of_the_plain_model(
    case: str, block_bytes: int, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every axis at once, in blocks smaller than a matrix too; the result loads and runs."""
    monkeypatch.setattr(trim, "BLOCK_BYTES", block_bytes)
    sizes = sizes_for(QUANTISED[case][0], "all")
    for name, dtype in (("plain", None), ("quantised", "bfloat16")):
        source = open_checkpoint(pair(case) / name, dtype)
        plan = plan_for(source, sizes)
        write_pruned(source, plan, tmp_path / name, check=True)
    same_weights(tmp_path / "quantised", tmp_path / "plain")
    assert (tmp_path / "quantised" / "config.json").read_bytes() == (tmp_path / "plain" / "config.json").read_bytes()
    assert torch.equal(logits_of(tmp_path / "quantised"), logits_of(tmp_path / "plain"))


@pytest.mark.parametrize("model_type", ["gemma3", "mistral3"])
def test_the_text_model_of_text_and_images(model_type: str, tmp_path: Path) -> None:
    """What stands beside it is dequantised too; alone or inside, it is cut as the plain model is."""
    place = quantise_fp8(make_wrapped(model_type, tmp_path / "source"), tmp_path, RAGGED)
    for text_only in (False, True):
        cut = {}
        for name, dtype in (("plain", None), ("quantised", "bfloat16")):
            source = open_checkpoint(place / name, dtype)
            source = source.unwrapped() if text_only else source
            cut[name] = tmp_path / f"{name}-{text_only}"
            write_pruned(source, plan_for(source, {"hidden": 36, "ffn": 56}), cut[name], check=True)
        same_weights(cut["quantised"], cut["plain"])
        assert (cut["quantised"] / "config.json").read_bytes() == (cut["plain"] / "config.json").read_bytes()


@pytest.mark.parametrize("case", ["blocks", "experts", "mxfp4"])
def test_runs_of_elements(case: str, pair: Pair) -> None:
    """Any run of a tensor is that run of its values, whatever the rows that it begins and ends in."""
    checkpoint = open_checkpoint(pair(case) / "quantised", "bfloat16")
    plain = load_file(pair(case) / "plain" / "model.safetensors")
    generator = np.random.default_rng(0)
    for name, info in checkpoint.tensors.items():
        assert torch.equal(read_tensor(info), plain[name])
        flat = plain[name].reshape(-1).view(torch.uint16).numpy()
        for _ in range(5):
            first, last = np.sort(generator.integers(0, len(flat) + 1, 2))
            assert np.array_equal(read_bits(info, int(first), int(last - first)), flat[first:last])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_types(dtype: str, pair: Pair, tmp_path: Path) -> None:
    """--dtype is that of the dequantised weights and of the config; others stay as they are stored."""
    run(pair("blocks") / "quantised", tmp_path / "out", dequantize=True, dtype=dtype)
    stored = load_file(pair("blocks") / "quantised" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        if f"{name}_scale_inv" not in stored:
            assert torch.equal(tensor, stored[name])
            continue
        scale = stored[f"{name}_scale_inv"].repeat_interleave(RAGGED[0], 0).repeat_interleave(RAGGED[1], 1)
        height, width = tensor.shape
        expected = (stored[name].float() * scale[:height, :width]).to(getattr(torch, dtype))
        assert torch.equal(tensor, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert not verify(tmp_path / "out", source=str(pair("blocks") / "quantised")).problems


def test_the_command_writes_the_plain_model(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without sizes and a name the output is named after its type, and what comes next is to measure it."""
    source = pair("mxfp4") / "quantised"
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["prune", str(source), "--dequantize"]) == 0
    same_weights(tmp_path / "quantised-bfloat16", pair("mxfp4") / "plain")
    assert "next: minitron importance quantised-bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("plain", ["--layers", "2", "--dequantize"], "is not quantised"),
        ("plain", ["--layers", "2", "--dtype", "float16"], "there are none"),
        ("quantised", ["--dequantize", "--dtype", "int8"], "'int8' is unknown"),
        ("quantised", ["--dequantize", "--hidden", "48"], "nothing is cut"),
        ("quantised", ["--layers", "2"], "is quantised with fp8"),
    ],
)
def test_what_the_command_refuses(
    name: str, options: list[str], words: str, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dry or not, in one line and a hint."""
    model = str(pair("blocks") / name)
    for dry in ([], ["--dry-run"]):
        capsys.readouterr()
        assert main(["prune", model, *options, "-o", str(tmp_path / "out"), *dry]) == 1
        error, hint = capsys.readouterr().err.splitlines()
        assert words in error
        assert hint.startswith("hint: ")
        assert not any(tmp_path.iterdir())


def test_verify_sees_another_source(pair: Pair, tmp_path: Path) -> None:
    """A scale that changes changes the source's digest and what follows from it."""
    place = quantise_fp8(pair("blocks") / "plain", tmp_path, RAGGED)
    run(place / "quantised", tmp_path / "out", dequantize=True)
    stored = load_file(place / "quantised" / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] *= 2
    save_file(stored, place / "quantised" / "model.safetensors", {"format": "pt"})
    found = verify(tmp_path / "out", source=str(place / "quantised"))
    assert len(found.problems) == 2


def test_values_that_are_not_finite_are_refused(pair: Pair, tmp_path: Path) -> None:
    place = quantise_fp8(pair("blocks") / "plain", tmp_path, RAGGED)
    stored = load_file(place / "quantised" / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"].view(torch.uint8)[3, 5] = 0x7F  # NaN
    save_file(stored, place / "quantised" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MinitronError, match=r"up_proj.weight .* not finite"):
        run(place / "quantised", tmp_path / "out", dequantize=True)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_plain_model(pair: Pair, tmp_path: Path) -> None:
    request = PruneRequest(model=str(pair("blocks") / "quantised"), output=tmp_path / "out", dequantize=True)
    facts = dry_run(request).facts
    source = (pair("blocks") / "quantised" / "model.safetensors").stat().st_size
    plain = load_file(pair("blocks") / "plain" / "model.safetensors")
    assert facts.change == "fp8 -> bfloat16"
    assert facts.parameters[0] == facts.parameters[1] == sum(tensor.numel() for tensor in plain.values())
    assert facts.bytes[1] == 2 * facts.parameters[1]
    assert 0 < source - facts.bytes[0] < 20_000  # the header
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_memory_does_not_grow_with_the_model(
    method: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many more bytes pass by than are held: blocks in flight, and of MXFP4 one expert's codes in each."""
    block = 1 << 16
    monkeypatch.setattr(trim, "BLOCK_BYTES", block)
    if method == "fp8":
        place = quantise_fp8(toy("llama", hidden_size=240, intermediate_size=8000), tmp_path)
    else:
        place = quantise_mxfp4(toy("gpt_oss", hidden_size=256, intermediate_size=256, num_local_experts=24), tmp_path)
    source = open_checkpoint(place / "quantised", "bfloat16")
    peak_of = {}
    for name in ("first", "second"):  # what is imported on the way is not part of it
        tracemalloc.start()
        write_pruned(source, plan_for(source, {"hidden": 120}), tmp_path / name)
        peak_of[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    allowed = trim.PEAK_BYTES / (4 << 20) * block + trim.dequantising_bytes(source) + 1.6e6
    assert peak_of["second"] < allowed < source.num_bytes / 3
