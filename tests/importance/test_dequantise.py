"""Scores of a quantised model are those of its values, resident or streamed, and so is what is made of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.__main__ import run
from minitron_cli.checkpoint.scores_file import read_scores

Pair = Callable[[str], Path]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    letters = np.random.default_rng(0).choice(list("abcdefgh "), (40, 60))
    file.write_text("".join(json.dumps({"text": "".join(row)}) + "\n" for row in letters))
    return file


def measure(model: Path, output: Path, text: Path, *options: str) -> Path:
    flag = ["--dequantize"] if model.name == "quantised" else []
    line = ["importance", str(model), "--data", str(text), "--samples", "6", "--seq-len", "12", "-o", str(output)]
    assert run([*line, *flag, *options]) == 0
    return output


def assert_same(one: Path, other: Path, rounding: float = 0.0) -> None:
    scores, raw = read_scores(one)
    others, raws = read_scores(other)
    assert scores.values.keys() == others.values.keys()
    assert raw.keys() == raws.keys()
    for axis, found in (*scores.values.items(), *raw.items()):
        expected = others.values[axis] if axis in others.values and found is scores.values[axis] else raws[axis]
        np.testing.assert_allclose(found, expected, rtol=rounding, atol=0, err_msg=axis)


@pytest.mark.parametrize("case", ["blocks", "latent attention and experts", "experts", "mxfp4"])
@pytest.mark.parametrize("mode", ["stream", "resident"])
def test_scores_are_those_of_the_values(case: str, mode: str, pair: Pair, text: Path, tmp_path: Path) -> None:
    quantised, plain = (
        measure(pair(case) / name, tmp_path / f"{name}.safetensors", text, "--mode", mode)
        for name in ("quantised", "plain")
    )
    assert_same(quantised, plain)


@pytest.mark.parametrize("metric", ["magnitude", "wanda"])
def test_scores_of_weights(metric: str, pair: Pair, text: Path, tmp_path: Path) -> None:
    quantised, plain = (
        measure(pair("mxfp4") / name, tmp_path / f"{name}.safetensors", text, "--metric", metric)
        for name in ("quantised", "plain")
    )
    assert_same(quantised, plain)


@pytest.mark.parametrize(
    ("case", "measured", "options"),
    [
        ("blocks", ["--second-moments"], ["--ffn", "56", "--compensate", "least-squares", "--select", "residual"]),
        ("blocks", ["--second-moments"], ["--hidden", "36", "--compensate", "least-squares", "--rotate"]),
        ("mxfp4", ["--second-moments"], ["--expert-ffn", "64", "--compensate", "least-squares"]),
        ("experts", [], ["--experts", "3", "--expert-merge", "m-smoe"]),
        ("mxfp4", [], ["--experts", "3", "--expert-ffn", "64", "--expert-merge", "m-smoe"]),
    ],
)
def test_what_new_values_are_made_of(
    case: str, measured: list[str], options: list[str], pair: Pair, text: Path, tmp_path: Path
) -> None:
    """Compensation, rotation and merging read other tensors, and other parts, than pass by; the result verifies."""
    for name in ("quantised", "plain"):
        model, flag = str(pair(case) / name), ["--dequantize"] * (name == "quantised")
        scores = measure(pair(case) / name, tmp_path / f"{name}.safetensors", text, *measured)
        out = tmp_path / name
        assert run(["prune", model, "--scores", str(scores), *options, *flag, "-o", str(out), "--check"]) == 0
        assert run(["verify", str(out), "--source", model]) == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("quantised", "plain"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_measuring_first(pair: Pair, text: Path, tmp_path: Path) -> None:
    """`prune --data` measures the values that it cuts."""
    for name in ("quantised", "plain"):
        line = ["prune", str(pair("blocks") / name), "--ffn", "56", "--data", str(text), "--samples", "6"]
        flag = ["--dequantize"] * (name == "quantised")
        assert run([*line, "--seq-len", "12", *flag, "-o", str(tmp_path / name)]) == 0
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("quantised", "plain"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_accelerate_cannot_place_it(pair: Pair, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["importance", str(pair("blocks") / "quantised"), "--dequantize", "--data", str(text)]
    assert run([*line, "--device-map", "auto"]) == 1
    assert "--mode stream" in capsys.readouterr().err
