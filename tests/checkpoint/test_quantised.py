"""What is quantised is refused in words without the flag, and with it where codes, scales and config do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.codes import _e2m1_pairs, _e4m3_pairs
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError

Pair = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
UP, OSS = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture
def spoil(pair: Pair, tmp_path: Path) -> Callable[[str, Callable[[Tensors], Any]], Path]:
    """spoil(case, change) -> a quantised toy whose tensors `change` altered."""

    def spoiled(case: str, change: Callable[[Tensors], Any]) -> Path:
        place = Path(shutil.copytree(pair(case) / "quantised", tmp_path / "spoiled"))
        tensors = load_file(place / "model.safetensors")
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, place / "model.safetensors", {"format": "pt"})
        return place

    return spoiled


def configured(pair: Pair, tmp_path: Path, settings: Any) -> Path:
    """A quantised toy with other settings in its config."""
    place = Path(shutil.copytree(pair("blocks") / "quantised", tmp_path / "configured"))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return place


def test_every_code_is_torchs_number() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    pairs = _e4m3_pairs().view(np.float32).reshape(256, 256, 2)
    assert np.array_equal(pairs[..., 0], np.broadcast_to(codes, (256, 256)), equal_nan=True)
    assert np.array_equal(pairs[..., 1], np.broadcast_to(codes[:, None], (256, 256)), equal_nan=True)
    assert np.array_equal(np.signbit(pairs[0, :, 0]), np.arange(256) >= 128)


def test_every_half_byte_is_transformers_number() -> None:
    from transformers.integrations.mxfp4 import FP4_VALUES

    pairs = _e2m1_pairs().view(np.float32).reshape(16, 16, 2)
    assert np.array_equal(pairs[3, :, 0], FP4_VALUES)
    assert np.array_equal(pairs[:, 3, 1], FP4_VALUES)


@pytest.mark.parametrize("case", ["blocks", "compressed by rows", "mxfp4"])
@pytest.mark.parametrize("verb", ["prune", "importance"])
def test_the_flag_is_named(
    case: str, verb: str, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--layers", "2"] if verb == "prune" else ["--metric", "magnitude"]
    model = str(pair(case) / "quantised")
    capsys.readouterr()
    assert run([verb, model, *wanted, "-o", str(tmp_path / "out")]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error:")
    assert "is quantised with" in error
    assert "--dequantize" in hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "nvfp4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, r"modelopt \(NVFP4\)"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}, "float-quantized"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp4 experts"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": "128"}, "fp8"),
        ({}, None),
        ("int8", "int8"),
    ],
)
@pytest.mark.parametrize("flag", [None, "bfloat16"])
def test_other_methods_are_refused_by_name(
    settings: Any, words: str | None, flag: str | None, pair: Pair, tmp_path: Path
) -> None:
    place = configured(pair, tmp_path, settings)
    with pytest.raises(MinitronError, match=f"is quantised with.*{words}.*not dequantised" if words else None):
        open_checkpoint(place, flag)


SPOILED: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "no scale": ("blocks", lambda t: t.pop(f"{UP}_scale_inv"), f"{UP} is stored as F8_E4M3 and has no scale"),
    "a row of scales less": (
        "blocks", lambda t: t.update({f"{UP}_scale_inv": t[f"{UP}_scale_inv"][:-1]}), r"shape \[4, 2\].*need \[5, 2\]",
    ),
    "one scale for all": (
        "blocks", lambda t: t.update({f"{UP}_scale_inv": torch.ones(1)}), r"has shape \[1\].*need \[5, 2\]",
    ),
    "whole numbers for scales": (
        "blocks", lambda t: t.update({f"{UP}_scale_inv": torch.ones(5, 2, dtype=torch.int32)}), "stored as I32",
    ),
    "another float8": ("blocks", lambda t: t.update({UP: t[UP].view(torch.float8_e5m2)}), "is F8_E5M2"),
    "a quantised norm": (
        "blocks",
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
        r"model.norm.weight is F8_E4M3 \[48\]",
    ),
    "blocks where rows are said": (
        "compressed by rows", lambda t: t.update({f"{UP}_scale": torch.ones(5, 2)}), r"need \[88, 1\]",
    ),
    "a scale of a plain weight": (
        "blocks", lambda t: t.update({UP: t[UP].to(torch.bfloat16)}), f"does not know {UP}_scale_inv",
    ),
    "weights of other sizes": ("blocks", lambda t: t.update({UP: t[UP][:81]}), r"shape \[81, 48\].*\[88, 48\]"),
    "no scales": ("mxfp4", lambda t: t.pop(f"{OSS}_scales"), "has no scales"),
    "scales of other blocks": (
        "mxfp4", lambda t: t.update({f"{OSS}_scales": t[f"{OSS}_scales"][..., :1]}), r"its blocks need \[5, 192, 2\]",
    ),
    "half blocks": (
        "mxfp4", lambda t: t.update({f"{OSS}_blocks": t[f"{OSS}_blocks"][..., :8]}), "MXFP4 is U8",
    ),
    "experts less": (
        "mxfp4",
        lambda t: t.update({f"{OSS}_{end}": t[f"{OSS}_{end}"][:4] for end in ("blocks", "scales")}),
        r"shape \[4, 64, 192\], the config says \[5, 64, 192\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_what_does_not_fit_is_refused(what: str, spoil: Callable[[str, Callable[[Tensors], Any]], Path]) -> None:
    case, change, words = SPOILED[what]
    with pytest.raises(MinitronError, match=words):
        open_checkpoint(spoil(case, change), "bfloat16")


def test_a_plain_model_has_nothing_to_dequantise(pair: Pair) -> None:
    with pytest.raises(MinitronError, match="is not quantised"):
        open_checkpoint(pair("blocks") / "plain", "bfloat16")


def test_inspect_shows_the_plain_model(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in ("quantised", "plain"):
        assert run(["inspect", str(pair("mxfp4") / name), "--json"]) == 0
        shown[name] = json.loads(capsys.readouterr().out)
    for key in ("parameters", "shape", "flops_per_token", "kv_bytes_per_token", "axes"):
        assert shown["quantised"][key] == shown["plain"][key]
    assert (shown["quantised"]["quantised"], shown["plain"]["quantised"]) == ("mxfp4", None)
    assert shown["quantised"]["dtypes"] == ["BF16", "U8"]
    assert shown["quantised"]["bytes"] < shown["plain"]["bytes"]
