"""The verb with --second-moments: resident and streamed take the same, found again, named by the scores."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.moments_file import moments_digest, moments_path, open_moments
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.importance.options import Options
from minitron_cli.importance.run import measure, rehearse
from minitron_cli.importance.second_moments import SecondMoments, _add_gram


@pytest.fixture
def options(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"Story {n}: " + "the cat sat. " * (n % 5 + 2)}) for n in range(40)))
    return Options(data=(str(text),), samples=8, seq_len=24, second_moments=True, dtype="float32", device="cpu")


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_neox"])
def test_streamed_moments_are_the_resident_ones(toy, family, options, tmp_path):
    found = []
    for mode in ("resident", "stream"):
        output = tmp_path / f"{mode}.safetensors"
        measure(toy(family), replace(options, mode=mode, batch_size=3), output)
        found.append(open_moments(moments_path(output)))
    one, other = found
    assert [i.readers for i in one.inputs] == [i.readers for i in other.inputs]
    assert sorted(p.name for p in other.path.iterdir()) == sorted([*other.files, "moments.json"])
    for a, b in zip(one.inputs, other.inputs):
        assert a == b
        np.testing.assert_allclose(one.read(a), other.read(b), rtol=1e-4, atol=1e-6)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_moments_are_measured_once_and_named_by_the_scores(toy, options, tmp_path):
    output = tmp_path / "scores.safetensors"
    plain = measure(toy("llama"), replace(options, second_moments=False), output)
    assert "second_moments" not in plain.scores.provenance
    assert measure(toy("llama"), options, output).made == "measured"
    again = measure(toy("llama"), options, output)
    assert again.made == "found"
    digest = moments_digest(moments_path(output))
    assert again.scores.provenance["second_moments"] == {"name": "scores.moments", "sha256": digest}
    assert measure(toy("llama"), replace(options, second_moments=False), output).made == "found"
    with pytest.raises(MinitronError, match="measured with other settings"):
        measure(toy("llama"), replace(options, seed=3), output)
    measure(toy("llama"), replace(options, seed=3, force=True), output)
    assert moments_digest(moments_path(output)) != digest


def test_metrics_without_a_pass_have_no_moments(options):
    with pytest.raises(MinitronError, match="makes no forward passes"):
        replace(options, metric="magnitude")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_multiplies_half_precision_without_loss():
    tokens = torch.randn(300, 40, dtype=torch.bfloat16, device="cuda")
    total = torch.zeros(40, 40, dtype=torch.float64, device="cuda")
    _add_gram(total, tokens)
    torch.testing.assert_close(total, tokens.double().T @ tokens.double(), rtol=1e-5, atol=1e-3)


def test_a_disk_that_can_not_take_the_moments_is_refused_first(toy, options, tmp_path, monkeypatch):
    found, output = tmp_path / "found.safetensors", tmp_path / "s.safetensors"
    measure(toy("llama"), options, found)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for refused in (
        lambda: rehearse(open_checkpoint(toy("llama")), options, output),
        lambda: SecondMoments(open_checkpoint(toy("llama")), output, {}, World()).begin(),
    ):
        with pytest.raises(MinitronError, match=r"s\.moments needs .* and its disk has 0\.0 MB free"):
            refused()
    rehearse(open_checkpoint(toy("llama")), options, found)
    assert measure(toy("llama"), options, found).made == "found", "nothing is written, so nothing has to fit"
