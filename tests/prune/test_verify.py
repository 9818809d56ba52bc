"""`verify`: every value of a manifest that is altered, every file that is changed, missing or added shows."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.checkpoint.atomic import MANIFEST
from minitron_cli.checkpoint.moments_file import open_moments
from minitron_cli.checkpoint.provenance import read_manifest
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores, write_scores
from minitron_cli.checkpoint.seal import sealed
from minitron_cli.checkpoint.tensor_digests import Streamed, combined, is_finite, source_digest
from minitron_cli.checkpoint.verify import verify_moments, verify_scores
from minitron_cli.errors import MinitronError
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.scores import Scores
from tests.prune.cutting import plan_for, prune_to, random_scores, sizes_for
from tests.prune.test_compensate import measure, prune_both, random_rows

Toy = Callable[..., Path]


@pytest.fixture(scope="module")
def pruned(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model; do not write into it."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    source = open_checkpoint(toy("llama"))
    plan = plan_for(source, {"hidden": 36, "ffn": 56, "layer": 2})
    cut = {axis: n for axis, n in plan.target.sizes.items() if n != source.shape[axis]}
    write_pruned(source, plan, out, options={"target": cut, "force": False})
    return out


@pytest.fixture
def copy(pruned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pruned, tmp_path / "small"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(below, (*path, key))
    else:
        yield path


def altered(content: Any, path: tuple[Any, ...]) -> Any:
    """A copy with the value at `path` changed into another of its kind."""
    copied = json.loads(json.dumps(content))
    place = copied
    for key in path[:-1]:
        place = place[key]
    old = place[path[-1]]
    new: Any = "x"
    if isinstance(old, int):
        new = not old if isinstance(old, bool) else old + 1
    elif isinstance(old, str):
        new = old[:-1] + ("0" if old[-1:] != "0" else "1")
    place[path[-1]] = new
    return copied


def test_a_whole_model_verifies(pruned: Path, toy: Toy) -> None:
    found = verify(pruned, str(toy("llama")), forward=True)
    assert found.problems == []
    assert "a forward pass over 8 tokens" in found.checks


def test_every_altered_value_of_a_manifest_shows(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    paths = list(leaves(manifest))
    assert len(paths) > 40
    for path in paths:
        (copy / MANIFEST).write_text(json.dumps(altered(manifest, path)))
        assert verify(copy, load=False).problems, path
        with pytest.raises(MinitronError, match="was altered"):
            read_manifest(copy)


@pytest.mark.parametrize("key", ["files", "options", "inputs", "verb", "lineage"])
def test_a_manifest_without_a_part_is_refused(key: str, copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest[key]
    (copy / MANIFEST).write_text(json.dumps(sealed(manifest)))
    with pytest.raises(MinitronError, match=f"damaged: {key}"):
        verify(copy, load=False)


@pytest.mark.parametrize("path", [("shape", "target", "ffn"), ("shape", "source", "ffn"), ("kept_layers",),
                                  ("options", "target", "hidden")])  # fmt: skip
def test_a_manifest_sealed_anew_contradicts_the_model(path: tuple[Any, ...], copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(sealed(altered(manifest, path))))
    assert any("not th" in problem for problem in verify(copy, load=False).problems)


@pytest.mark.parametrize("lineage", [[5], ["root"], [{}]])
def test_a_lineage_that_is_none_is_refused(lineage: list, copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(sealed({**manifest, "lineage": lineage})))
    with pytest.raises(MinitronError, match="damaged: lineage"):
        verify(copy, load=False)


def test_files_that_a_loader_would_read_must_be_listed(copy: Path) -> None:
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"")
    (copy / "modeling.py").write_text("")
    (copy / "README.md").write_text("mine")
    found = verify(copy, load=False)
    assert found.problems == [
        f"{name} is not listed in {MANIFEST}" for name in ("model-00002-of-00002.safetensors", "modeling.py")
    ]
    assert found.unlisted == ["README.md"]


def test_a_flipped_bit_shows_though_the_weights_are_taken_off_the_list(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]["model.safetensors"]
    (copy / MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert verify(copy, load=False).problems == [f"model.safetensors is not listed in {MANIFEST}"]


def test_a_listed_file_outside_the_directory_is_not_read(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["../outside"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(sealed(manifest)))
    assert "outside the directory" in verify(copy, load=False).problems[0]


def test_manifests_of_older_versions_are_taken_with_a_word(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["digest"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    found = verify(copy, load=False)
    assert found.problems == []
    assert "carries no digest of itself" in found.notes[0]
    assert read_manifest(copy) == manifest


def test_a_model_that_does_not_run_is_found_by_running_it(toy: Toy, tmp_path: Path) -> None:
    """Weights of NaN load without complaint."""
    source = Path(shutil.copytree(toy("llama"), tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, {"ffn": 56})
    with pytest.raises(MinitronError, match=r"model.norm.weight .* not finite"):
        write_pruned(checkpoint, plan, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    write_pruned(checkpoint, plan, tmp_path / "small", force=True)
    assert verify(tmp_path / "small").problems == []
    assert verify(tmp_path / "small", forward=True).problems == ["a forward pass gives logits that are not finite"]


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_is_finite_agrees_with_torch_on_every_bit_pattern(dtype: torch.dtype, name: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    expected = torch.isfinite(torch.from_numpy(patterns.view(np.int16)).view(dtype)).numpy()
    found = [is_finite(name, patterns[i : i + 1].view(np.uint8)) for i in range(1 << 16)]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "F32"), (np.float64, "F64")])
def test_is_finite_of_wide_types(dtype: type, name: str) -> None:
    info = np.finfo(dtype)
    edges = np.array([0, -0.0, info.max, info.min, info.tiny, np.inf, -np.inf, np.nan, -np.nan], dtype)
    for value in edges:
        block = np.array([1, value, -1], dtype)
        assert is_finite(name, block.view(np.uint8)) == np.isfinite(block).all()


def test_a_source_stored_in_other_shards_is_the_same_source(toy: Toy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, sharded = toy("llama"), tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(sharded, max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert source_digest(sharded) == source_digest(whole)
    prune_to(whole, tmp_path / "small", {"ffn": 56})
    assert verify(tmp_path / "small", str(sharded), load=False).problems == []
    scores = Scores(random_scores(open_checkpoint(whole).shape).values, {"model": {"digest": source_digest(whole)}})
    checkpoint = open_checkpoint(sharded)
    write_pruned(checkpoint, plan_for(checkpoint, {"ffn": 56}), tmp_path / "other", scores=scores)


@pytest.mark.parametrize("change", ["a bit", "a shape", "a name", "the config"])
def test_another_source_has_another_digest(change: str, toy: Toy, tmp_path: Path) -> None:
    source = Path(shutil.copytree(toy("llama"), tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    if change == "a bit":
        tensors["model.norm.weight"].view(torch.int32)[0] ^= 1
    if change == "a shape":
        tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(6, 8)
    if change == "a name":
        tensors["model.norm.weights"] = tensors.pop("model.norm.weight")
    if change == "the config":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert source_digest(source) != source_digest(toy("llama"))


@pytest.mark.parametrize("block", [7, 64, 1000, 1 << 20])
def test_digests_do_not_depend_on_how_the_bytes_pass_by(block: int, toy: Toy) -> None:
    checkpoint = open_checkpoint(toy("qwen3_moe"))
    streamed = Streamed(checkpoint.tensors)
    for file in checkpoint.files:
        raw = file.read_bytes()
        for begin in range(0, len(raw), block):
            streamed.update(file, begin, memoryview(raw)[begin : begin + block])
    found = combined(checkpoint.stored, streamed.digests())
    assert found == source_digest(checkpoint.path)


def test_every_altered_byte_and_value_of_scores_shows(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    facts = {"model": {"name": "m", "digest": "d"}, "seq_len": 8, "depth": {"loss": [1.5, 2]}, "format": 1}
    arrays = {"count": np.arange(3.0)}
    write_scores(file, Scores({"hidden": np.arange(1.0, 5.0)}, facts), arrays)
    assert verify_scores(file).problems == []
    whole = file.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for at in range(data, len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify_scores(file).problems
    for old, new in ((b"seq_len", b"seq_lem"), (b"hidden", b"hidder"), (b"1.5", b"1.6"), (b'"d', b'"e')):
        spoiled = whole.replace(old, new) if old != b'"d' else whole.replace(b'\\"d\\"', b'\\"e\\"')
        assert spoiled != whole
        file.write_bytes(spoiled)
        with pytest.raises(MinitronError, match="altered"):
            read_scores(file)


@pytest.mark.parametrize(
    ("values", "facts", "message"),
    [
        ({"hidden": np.ones(48)}, {"format": 99}, "has format 99"),
        ({"hidden": np.ones(48)}, ["a list"], "metadata is not an object"),
        ({"hidden": np.ones(48)}, {"model": "m"}, "metadata is not an object"),
        ({"hidden": np.ones(48, bool)}, {}, "are bool, not floating-point"),
        ({"hidden": np.ones(48, np.int64)}, {}, "are int64, not floating-point"),
        ({"hidden": np.zeros(48)}, {}, "are all zero"),
        ({"hidden": -np.arange(48.0)}, {}, "are negative, first at index [1]"),
    ],
)
def test_scores_that_are_none_are_refused(values: dict, facts: Any, message: str, toy: Toy, tmp_path: Path) -> None:
    from safetensors.numpy import save_file as save_arrays

    save_arrays(values, tmp_path / "s.safetensors", {"minitron": json.dumps(facts)})
    with pytest.raises(MinitronError) as caught:
        read_scores(tmp_path / "s.safetensors")[0].require("hidden", open_checkpoint(toy("llama")).shape)
    assert message in caught.value.message


def test_layers_can_have_negative_scores(toy: Toy) -> None:
    scores = Scores({"layer": np.array([0.5, -0.1, 0.0])})
    assert scores.require("layer", open_checkpoint(toy("llama")).shape)[1] == -0.1


def test_altered_moments_are_refused_by_prune_and_verify(toy: Toy, tmp_path: Path) -> None:
    source = toy("llama")
    moments = measure(source, tmp_path / "s.safetensors", random_rows(3, 8))
    assert verify_moments(moments).problems == []
    file = moments / "layer-00001.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert verify_moments(moments).problems == [f"{file} is not the file that was measured (sha256 differs)"]
    plan = plan_for(open_checkpoint(source), {"ffn": 56})
    with pytest.raises(MinitronError, match=r"layer-00001.safetensors is not the file that was measured"):
        prune_both(source, plan, moments, tmp_path, ridge=1e-1)
    index = json.loads((moments / "moments.json").read_text())
    (moments / "moments.json").write_text(json.dumps({**index, "model": {}}))
    with pytest.raises(MinitronError, match="was altered"):
        open_moments(moments)


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_5_text", "ernie4_5_moe", "deepseek_v3", "glm4_moe_lite"])
def test_models_of_several_kinds_of_layers_are_verified(toy: Toy, tmp_path: Path, model_type: str) -> None:
    source = open_checkpoint(toy(model_type))
    plan = plan_for(source, sizes_for(model_type, "all"))
    cut = {axis: n for axis, n in plan.target.sizes.items() if n != source.shape[axis]}
    write_pruned(source, plan, tmp_path / "small", options={"target": cut, "force": False})
    assert verify(tmp_path / "small", str(source.path)).problems == []
