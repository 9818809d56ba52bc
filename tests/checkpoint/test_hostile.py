"""Checkpoints that lie, by accident or on purpose: each is refused in words, and nothing is unpickled."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.checkpoint.headers import read_header
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError

Toy = Callable[..., Path]


@pytest.fixture
def model(toy: Toy, tmp_path: Path) -> Path:
    """A toy of one's own to spoil."""
    return Path(shutil.copytree(toy("llama"), tmp_path / "model"))


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put(file: Path, header: object, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def change(model: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of model.safetensors in place."""
    header, data = header_of(model / "model.safetensors")
    edit(header)
    put(model / "model.safetensors", header, data)


NORM = "model.norm.weight"


def widen(header: dict[str, Any]) -> None:
    header[NORM]["shape"] = [4096]


def overlap(header: dict[str, Any]) -> None:
    other = next(e for n, e in header.items() if n.endswith("input_layernorm.weight"))
    header[NORM]["data_offsets"] = other["data_offsets"]


def rename(header: dict[str, Any]) -> None:
    header["model.surprise.weight"] = header.pop(NORM)


def beyond(header: dict[str, Any]) -> None:
    header["model.layers.7.input_layernorm.weight"] = header.pop("model.layers.2.input_layernorm.weight")


def transpose(header: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    header[name]["shape"].reverse()


HEADERS = [
    (widen, "'model.norm.weight' claims bytes"),
    (overlap, "share bytes"),
    (rename, "the table does not know model.surprise.weight; model.norm.weight: 0 of 1 tensors are there"),
    (beyond, "model.layers.7.input_layernorm.weight lies beyond the config's 3 layers"),
    (transpose, "model.layers.0.mlp.down_proj.weight has shape [88, 48], the config says [48, 88]"),
    (lambda h: h[NORM].update(dtype="F4"), "is stored as F4, which cannot be sliced"),
    (lambda h: h[NORM].update(shape=[-48]), "malformed"),
    (lambda h: h[NORM].update(shape=["48"]), "malformed"),
    (lambda h: h[NORM].update(shape=[48.0]), "malformed"),
    (lambda h: h[NORM].update(data_offsets=[0]), "malformed"),
    (lambda h: h[NORM].update(data_offsets=[-8, 40]), "malformed"),
    (lambda h: h.update({NORM: None}), "malformed"),
    (lambda h: h.pop(NORM), "belong to no tensor"),
]


@pytest.mark.parametrize(("edit", "message"), HEADERS)
def test_a_header_that_lies(model: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(model, edit)
    with pytest.raises(MinitronError) as caught:
        open_checkpoint(model)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"hello", "is not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "its header says 1152921504606846976 bytes"),
        (struct.pack("<Q", 4) + b"{}{}", "unreadable header"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "unreadable header"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "a name stands twice"),
        (struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}' + b"0000", "malformed"),
        (struct.pack("<Q", 2) + b"{}" + b"tail", "4 bytes at its end belong to no tensor"),
    ],
)
def test_a_file_that_is_no_safetensors(tmp_path: Path, raw: bytes, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    with pytest.raises(MinitronError) as caught:
        read_header(file)
    assert message in caught.value.message


def test_every_truncation_is_noticed(model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(MinitronError):
            open_checkpoint(model)


def test_random_damage_to_the_header_never_escapes_as_another_error(model: Path) -> None:
    """Whatever bytes stand in a header: it opens as the same model, or it is refused as a user's error."""
    import numpy as np

    file = model / "model.safetensors"
    whole = file.read_bytes()
    names = set(open_checkpoint(model).tensors)
    generator = np.random.default_rng(0)
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    refused = 0
    for _ in range(150):
        spoiled = bytearray(whole)
        spoiled[int(generator.integers(end))] = int(generator.integers(256))
        file.write_bytes(spoiled)
        try:
            assert set(open_checkpoint(model).tensors) == names
        except MinitronError:
            refused += 1
    assert refused > 50


def shard(model: Path) -> Path:
    """Split model.safetensors in two shards with an index; returns the index."""
    header, data = header_of(model / "model.safetensors")
    header.pop("__metadata__", None)
    names = sorted(header)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file, chunk, new = f"model-{number}.safetensors", b"", {}
        for name in part:
            begin, end = header[name]["data_offsets"]
            new[name] = {**header[name], "data_offsets": [len(chunk), len(chunk) + end - begin]}
            chunk += data[begin:end]
            weight_map[name] = file
        put(model / file, new, chunk)
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_the_same_model(model: Path, toy: Toy) -> None:
    shard(model)
    assert open_checkpoint(model).tensors.keys() == open_checkpoint(toy("llama")).tensors.keys()


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"])
def test_an_index_that_points_elsewhere(model: Path, place: str) -> None:
    index = shard(model)
    content = json.loads(index.read_text())
    content["weight_map"][NORM] = place
    index.write_text(json.dumps(content))
    with pytest.raises(MinitronError, match="points at") as caught:
        open_checkpoint(model)
    assert place in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none(model: Path, content: str) -> None:
    shard(model).write_text(content)
    with pytest.raises(MinitronError, match="index"):
        open_checkpoint(model)


def test_a_missing_shard(model: Path) -> None:
    shard(model)
    (model / "model-1.safetensors").unlink()
    with pytest.raises(MinitronError, match=r"lacks 1 of 2 shards, e.g. model-1.safetensors"):
        open_checkpoint(model)


def test_two_shards_with_the_same_tensor(model: Path) -> None:
    shard(model)
    shutil.copy(model / "model-0.safetensors", model / "model-1.safetensors")
    with pytest.raises(MinitronError, match=r"stands in both model-0.safetensors and model-1.safetensors"):
        open_checkpoint(model)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.file, "unpickled"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.safetensors"])
def test_pickles_are_never_unpickled(model: Path, name: str, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "evidence")))
    with pytest.raises(MinitronError) as caught:
        open_checkpoint(model)
    assert ("pickled weights" in caught.value.message) == (name != "model.safetensors")
    assert not (tmp_path / "evidence").exists()


def test_weights_stored_quantised_are_named(model: Path) -> None:
    """Scales of a quantised checkpoint are tensors that the table does not know."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(MinitronError, match="quantised with fp8"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it has no config.json"),
        ("{", "not valid JSON"),
        ("[]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": "llamma"}', "unknown model_type 'llamma' (did you mean 'llama'?)"),
        ('{"model_type": "bert"}', "unknown model_type 'bert'"),
        ('{"model_type": "llama"}', "lacks vocab_size, hidden_size"),
        ('{"model_type": "gemma3n_text"}', "gemma3n_text models cannot be pruned: its layers share key/value caches"),
        ('{"model_type": "ernie4_5_moe", "use_bias": true}', "use_bias is True, the ernie4_5_moe table needs"),
        ('{"model_type": "stablelm", "qk_layernorm": true}', "qk_layernorm is True"),
        ('{"model_type": ["llama"]}', "unknown model_type"),
        ('{"model_type": "llama", "rms_norm_eps": NaN}', "not valid JSON: it holds NaN"),
        ('{"model_type": "llama", "hidden_act": "wat"}', "hidden_act is 'wat', which transformers does not know"),
    ],
)
def test_a_config_that_is_none(model: Path, content: str | None, message: str) -> None:
    (model / "config.json").unlink()
    if content is not None:
        (model / "config.json").write_text(content)
    with pytest.raises(MinitronError) as caught:
        open_checkpoint(model)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("dtype", ["int8", "bool", "int64", "float8_e4m3fn", "float8_e5m2", "uint8", "complex64"])
def test_numbers_that_are_no_weights(dtype: str, model: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(getattr(torch, dtype))}, model / "model.safetensors")
    with pytest.raises(MinitronError) as caught:
        open_checkpoint(model)
    assert name in caught.value.message
    assert "I64" not in caught.value.hint


def test_known_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN

    from minitron_cli.checkpoint.validation import known_activations

    assert set(known_activations()) == set(ACT2FN)


def test_nothing_in_the_package_unpickles() -> None:
    import re

    import minitron_cli

    risky = re.compile(r"import pickle|from pickle|torch\.load\(|allow_pickle=True|weights_only=False|joblib|marshal\b")
    sources = sorted(Path(minitron_cli.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [file.name for file in sources if risky.search(file.read_text(encoding="utf-8"))] == []
