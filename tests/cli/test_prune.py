"""`minitron prune`, `inspect` and `verify` as a user meets them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minitron_cli.checkpoint.provenance import read_manifest, read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.spec.scores import Scores
from tests.cli.conftest import Result
from tests.prune.cutting import random_scores
from tests.spellers import byte_level, made_text, save
from tests.toys import make_toy

Toy = Callable[..., Path]
Minitron = Callable[..., Result]


@pytest.fixture
def scores(toy: Toy, tmp_path: Path) -> Path:
    """Scores of the llama toy, with its identity."""
    return scores_for(toy("llama"), tmp_path / "scores.safetensors")


def scores_for(model: Path, file: Path) -> Path:
    provenance = {"model": {"name": model.name, "digest": source_digest(model)}}
    write_scores(file, Scores(random_scores(open_checkpoint(model).shape).values, provenance))
    return file


def test_prune_inspect_verify(toy: Toy, scores: Path, tmp_path: Path, minitron: Minitron) -> None:
    out = tmp_path / "small"
    done = minitron("prune", toy("llama"), "--target", "width", "--hidden", 36, "--ffn", 56, "--scores", scores, "-o", out, "--check")  # fmt: skip  # noqa: E501
    assert done.code == 0, done.err
    assert "checked against the masked source" in done.err
    assert done.out.splitlines()[-1].startswith(f"next: minitron distill {out} --teacher {toy('llama')}")
    facts = json.loads(minitron("inspect", out, "--json").out)
    assert facts["shape"]["hidden"] == 36
    assert facts["parameters"] == sum(np.prod(t.shape, dtype=int) for t in open_checkpoint(out).tensors.values())
    verified = minitron("verify", out, "--source", toy("llama"))
    assert verified.code == 0, verified.err
    assert "loads with transformers" in verified.out
    assert "weight files derived again" in verified.out
    assert verified.err == "", "no progress bar of transformers"


def test_environment_gives_the_defaults(
    toy: Toy, scores: Path, tmp_path: Path, minitron: Minitron, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the contract: `minitron prune --target width --hidden 36`, in a pipeline that exported the rest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINITRON_MODEL", str(toy("llama")))
    monkeypatch.setenv("MINITRON_SCORES", str(scores))
    done = minitron("prune", "--target", "width", "--hidden", 36)
    assert done.code == 0, done.err
    name = toy("llama").name + "-h36"
    assert (tmp_path / name / "minitron.json").is_file()


def test_dry_run_writes_nothing_and_counts(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    before = sorted(tmp_path.iterdir())
    done = minitron("prune", toy("llama"), "--layers", 2, "--ffn", 56, "-o", tmp_path / "x", "--dry-run", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["shape"]["layer"] == [3, 2]
    source = open_checkpoint(toy("llama"))
    assert facts["parameters"][0] == sum(np.prod(t.shape, dtype=int) for t in source.tensors.values())
    assert facts["bytes"][1] == 4 * facts["parameters"][1]
    assert sorted(tmp_path.iterdir()) == before


def test_depth_by_list_needs_no_scores(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    done = minitron("prune", toy("llama"), "--target", "depth", "--drop-layers", "1", "-o", tmp_path / "small")
    assert done.code == 0, done.err
    plan = read_plan(tmp_path / "small")
    assert plan is not None
    assert plan.kept["layer"].tolist() == [0, 2]
    manifest = read_manifest(tmp_path / "small")
    assert manifest is not None
    assert manifest["kept_layers"] == "0,2"
    assert manifest["lineage"] == [{"model": toy("llama").name, "verb": None}]


def test_lineage_grows(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    assert minitron("prune", toy("llama"), "--drop-layers", "1", "-o", tmp_path / "a").code == 0
    assert minitron("prune", tmp_path / "a", "--drop-layers", "0", "-o", tmp_path / "b").code == 0
    manifest = read_manifest(tmp_path / "b")
    assert manifest is not None
    assert [(step["model"], step["verb"]) for step in manifest["lineage"]] == [
        (toy("llama").name, None),
        ("a", "prune"),
    ]


def test_the_same_line_gives_the_same_bytes(toy: Toy, scores: Path, tmp_path: Path, minitron: Minitron) -> None:
    for name in ("a", "b"):
        line = ("prune", toy("llama"), "--hidden", 36, "--heads", 4, "--scores", scores, "-o", tmp_path / name)
        assert minitron(*line).code == 0
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_shards_are_cut_where_asked(toy: Toy, scores: Path, tmp_path: Path, minitron: Minitron) -> None:
    line = ("prune", toy("llama"), "--hidden", 36, "--scores", scores, "--max-shard-size", "60K")
    assert minitron(*line, "-o", tmp_path / "small", "--check").code == 0
    files = sorted(f.name for f in (tmp_path / "small").glob("*.safetensors"))
    assert len([f for f in files if f.startswith("model-")]) > 3
    assert minitron("verify", tmp_path / "small", "--source", toy("llama")).code == 0
    again = scores_for(tmp_path / "small", tmp_path / "again.safetensors")
    line = ("prune", tmp_path / "small", "--ffn", 56, "--scores", again, "-o", tmp_path / "smaller", "--check")
    assert minitron(*line).code == 0, "a sharded checkpoint prunes like a single file"


def test_what_lies_beside_the_weights_is_carried_along(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    source = Path(shutil.copytree(toy("llama"), tmp_path / "source"))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE").write_text("free")
    assert minitron("prune", source, "--drop-layers", 0, "-o", tmp_path / "small").code == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "LICENSE"):
        assert (tmp_path / "small" / name).read_bytes() == (source / name).read_bytes()


def test_rounding_to_friendly_multiples(toy: Toy, minitron: Minitron) -> None:
    line = ("prune", toy("mistral"), "--hidden", 37, "--ffn", 60, "--multiple-of", 16, "--dry-run", "--json")
    facts = json.loads(minitron(*line).out)
    assert facts["shape"]["hidden"] == [48, 32]
    assert facts["shape"]["ffn"] == [88, 64]


def test_a_budget_of_parameters(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    model = toy("mistral")
    scores = scores_for(model, tmp_path / "scores.safetensors")
    total = json.loads(minitron("inspect", model, "--json").out)["parameters"]
    line = ("prune", model, "--params", round(total * 0.7), "--scores", scores, "-o", tmp_path / "small")
    assert minitron(*line).code == 0
    small = json.loads(minitron("inspect", tmp_path / "small", "--json").out)["parameters"]
    assert abs(small / total - 0.7) < 0.02 * 0.7 + 1e-3
    assert minitron(*line[:-2], "--hidden", 36, "-o", tmp_path / "other").code == 1


def test_experts_and_their_routing(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    model = toy("qwen3_moe")
    scores = scores_for(model, tmp_path / "scores.safetensors")
    line = ("prune", model, "--scores", scores, "-o", tmp_path / "small", "--experts")
    refused = minitron(*line, 1, "--experts-per-token", 2)
    assert refused.code == 1
    assert "lower that too with --experts-per-token" in refused.err
    assert minitron(*line, 2, "--experts-per-token", 1).code == 0
    assert open_checkpoint(tmp_path / "small").config["num_experts_per_tok"] == 1


def test_one_expert_makes_a_dense_model(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    """The number of experts a token need not be said: a dense model has none."""
    model, out = toy("mixtral"), tmp_path / "small"
    line = ("prune", model, "--experts", 1, "--scores", scores_for(model, tmp_path / "scores.safetensors"), "-o", out)
    dry = minitron(*line, "--dry-run")
    assert "model type mixtral mistral" in " ".join(dry.out.split())
    done = minitron(*line, "--check")
    assert done.code == 0, done.err
    assert "mixtral -> mistral" in done.err
    assert "checked against the masked source" in done.err
    assert minitron("verify", out, "--source", model).code == 0
    seen = json.loads(minitron("inspect", model, "--json").out)
    assert [axis["note"] for axis in seen["axes"] if axis["axis"] == "expert"] == [
        "yes; with one expert it becomes a dense mistral"
    ]


def test_verify_finds_what_was_changed(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    out = tmp_path / "small"
    assert minitron("prune", toy("llama"), "--drop-layers", 0, "-o", out).code == 0
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    (out / "tokenizer.json").unlink()
    (out / "notes.txt").write_text("mine")
    found = minitron("verify", out, "--json", "--no-load")
    assert found.code == 1
    facts = json.loads(found.out)
    assert facts["problems"] == [
        "tokenizer.json is missing",
        "model.safetensors has changed (its sha256 differs)",
    ]
    assert facts["unlisted"] == ["notes.txt"]


def test_verify_against_another_source(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    from tests.toys import make_toy

    out = tmp_path / "small"
    assert minitron("prune", toy("llama"), "--drop-layers", 0, "-o", out).code == 0
    other = make_toy("llama", tmp_path / "other", seed=9)
    found = minitron("verify", out, "--source", other, "--no-load")
    assert found.code == 1
    assert "is not the model that was pruned" in found.err
    assert "model.safetensors does not follow from the source and the kept indices" in found.err


def test_inspect_says_what_can_be_pruned(toy: Toy, minitron: Minitron) -> None:
    facts = json.loads(minitron("inspect", toy("olmo2"), "--json").out)
    notes = {axis["axis"]: axis["note"] for axis in facts["axes"]}
    assert notes["hidden"] == "yes"
    turned = json.loads(minitron("inspect", toy("llama"), "--json").out)["axes"][1]
    assert (turned["axis"], turned["note"]) == ("hidden", "yes, along channels or directions (--rotate)")
    assert notes["head"].startswith("yes, but one norm spans")
    assert notes["vocab"] == "yes, where its tokenizer is BPE or Unigram"
    assert os.environ.get("HF_HUB_OFFLINE") == "1"


def test_inspect_says_what_the_tokenizer_spells(tmp_path: Path, minitron: Minitron) -> None:
    model = make_toy("llama", tmp_path / "model", vocab_size=448)
    save(byte_level(made_text(60), 448), model)
    assert "spells any text, by its bytes" in minitron("inspect", model).out
    (model / "tokenizer.json").write_text('{"model": ')
    assert "tokenizer.json is damaged" in minitron("inspect", model).out


def test_what_engines_make_of_a_model_and_of_a_cut(toy: Toy, tmp_path: Path, minitron: Minitron) -> None:
    """The toy's heads have 10 channels, hidden / heads is 8: CTranslate2 takes it for another model."""
    shown = minitron("inspect", toy("llama"), "--servable")
    assert shown.code == 0, shown.err
    assert "hidden / heads is 8" in shown.out
    facts = json.loads(minitron("inspect", toy("llama"), "--servable", "--json").out)["servable"]
    assert facts["engines"]["CTranslate2"] == ["it gives a head hidden / heads = 8 channels, where this model has 10"]
    assert facts["tensor_parallel"] == [1, 2]  # 6 heads over 2 groups
    assert "servable" not in json.loads(minitron("inspect", toy("llama"), "--json").out)
    for dry in ([], ["--dry-run"]):
        done = minitron("prune", toy("llama"), "--drop-layers", 1, "-o", tmp_path / f"small{len(dry)}", *dry)
        assert "to serve: tensor parallel over 1, 2; " in done.out
