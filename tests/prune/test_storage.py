"""How weights are stored does not matter: bytes pass through, and fused or split experts make the same model."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.checkpoint.bits import from_bits, to_bits
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.prune import trim
from minitron_cli.prune.change import changes
from minitron_cli.prune.gather_plan import cuts, reads
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.repairs import Repair
from minitron_cli.prune.trim import gather
from minitron_cli.prune.write import write_pruned
from tests.prune.cutting import difference, load, logits_of, plan_for, prune_to, sizes_for
from tests.toys import make_toy, toy_ids

Toy = Callable[..., Path]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_values_pass_through_bit_for_bit(dtype: torch.dtype, toy: Toy, tmp_path: Path) -> None:
    """Trimming a low-precision checkpoint gives the very bits that indexing the loaded tensors gives."""
    source = Path(shutil.copytree(toy("llama"), tmp_path / "source"))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    plan = prune_to(source, tmp_path / "small", {"hidden": 36, "ffn": 56, "layer": 2})
    found = load_file(tmp_path / "small" / "model.safetensors")
    hidden = torch.as_tensor(plan.kept["hidden"])
    for row, layer in enumerate(plan.kept["layer"]):
        name = "model.layers.{}.mlp.down_proj.weight"
        ffn = torch.as_tensor(plan.kept["ffn"][row])
        small = found[name.format(row)]
        assert small.dtype == dtype
        assert torch.equal(small, tensors[name.format(layer)][hidden][:, ffn])


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("cut", ["expert", "expert_ffn", "all"])
def test_experts_fused_on_disk(model_type: str, cut: str, toy: Toy, tmp_path: Path) -> None:
    """The same model stored with its experts fused prunes to the same model."""
    source = Path(shutil.copytree(toy(model_type), tmp_path / "fused"))
    model = load(source)
    fused = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(fused, source / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(source)
    assert {m.weight.layout for m in checkpoint.matches.values()} == {None, "fused"}
    plan = plan_for(checkpoint, sizes_for(model_type, cut))
    write_pruned(checkpoint, plan, tmp_path / "small")
    write_pruned(open_checkpoint(toy(model_type)), plan, tmp_path / "split")
    trimmed = logits_of(tmp_path / "small")
    assert difference(trimmed, masked_source(model, checkpoint.family, plan)(toy_ids(2, 11))) < 2e-5
    one, other = (load(tmp_path / name).state_dict() for name in ("small", "split"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_two_layouts_in_one_checkpoint_are_refused(toy: Toy, tmp_path: Path) -> None:
    from minitron_cli.errors import MinitronError

    source = Path(shutil.copytree(toy("qwen3_moe"), tmp_path / "mixed"))
    fused = {n: t.contiguous() for n, t in load(source).state_dict().items() if "experts.down_proj" in n}
    save_file({**load_file(source / "model.safetensors"), **fused}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(MinitronError, match="mixes the storage layouts fused and split"):
        open_checkpoint(source)


@pytest.mark.parametrize("block_bytes", [1, 500, 4096, 1 << 30])
def test_every_byte_is_read_once_and_blocks_make_no_difference(block_bytes: int, toy: Toy, tmp_path: Path) -> None:
    """Reads tile each file; gathering them gives the tensors that numpy's own indexing gives, for any block size."""
    source = open_checkpoint(toy("phi3"))
    plan = plan_for(source, {"hidden": 36, "ffn": 56, "head": 4, "layer": 2})
    file = source.files[0]
    raw = file.read_bytes()
    at, made = 0, {}
    for read in reads({file: len(raw)}, cuts(source, plan, changes(source, plan, None)), block_bytes):
        assert read.begin == at
        at += read.num_bytes
        if read.cut is not None:
            data = np.frombuffer(raw, np.uint8, read.num_bytes, read.begin)
            out = np.empty(read.kept_bytes, np.uint8)
            gather(read, data, out)
            made.setdefault(read.cut.out.name, bytearray()).extend(out.data)
    assert at == len(raw)
    write_pruned(source, plan, tmp_path / "small")
    for name, tensor in load_file(tmp_path / "small" / "model.safetensors").items():
        assert bytes(made[name]) == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("padding", [1, 2, 3, 4096])
def test_values_may_begin_at_any_byte(padding: int, toy: Toy, tmp_path: Path) -> None:
    """The format asks for no alignment of a file's data; the kept values are the same wherever they lay."""
    source = Path(shutil.copytree(toy("phi3"), tmp_path / "source"))
    raw = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    shifted = (length + padding).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * padding + raw[8 + length :]
    (source / "model.safetensors").write_bytes(shifted)
    cut = {"hidden": 36, "ffn": 56, "layer": 2}
    prune_to(source, tmp_path / "small", cut)
    prune_to(toy("phi3"), tmp_path / "expected", cut)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "expected")]
    assert weights[0] == weights[1]


def test_memory_does_not_grow_with_the_model(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 MB pass by in blocks of 64 kB; what is held is the blocks in flight, and the rows taken from one of them."""
    blocks = trim.PEAK_BYTES / trim.BLOCK_BYTES
    monkeypatch.setattr(trim, "BLOCK_BYTES", 1 << 16)
    source = open_checkpoint(toy("llama", vocab_size=60_000, hidden_size=240, tie_word_embeddings=False))
    assert source.num_bytes > 110e6
    plan = plan_for(source, {"hidden": 120, "ffn": 56})
    write_pruned(source, plan, tmp_path / "first")  # what is imported on the way is not part of it
    tracemalloc.start()
    write_pruned(source, plan, tmp_path / "small")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (blocks + 1) * (1 << 16) + 1e6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_repair_rounds_as_torch_does(dtype: torch.dtype) -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[:6] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-30, 3e38]).to(dtype)
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    bits = {2: np.uint16, 4: np.uint32}[dtype.itemsize]
    raw = values.view(torch.uint8).numpy().view(bits)
    with np.errstate(over="ignore"):
        found = Repair(1.1547, offset=1.0).apply(raw, name)
    expected = ((values.float() + 1.0) * 1.1547 - 1.0).to(dtype)
    assert np.array_equal(found, expected.view(torch.uint8).numpy().view(bits))


def test_bfloat16_keeps_a_nan_a_nan() -> None:
    odd = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], dtype=np.uint32).view(np.float32)
    assert np.isnan(from_bits(to_bits(odd, "BF16"), "BF16")).all()


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_repair_in_bfloat16(model_type: str, tmp_path: Path) -> None:
    """Stored in bfloat16 the repaired weights are rounded once more; the function stays that of the masked source."""
    source = make_toy(model_type, tmp_path / "source", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, {"hidden": 36})
    write_pruned(checkpoint, plan, tmp_path / "small")
    expected = masked_source(load(source), checkpoint.family, plan)(toy_ids(2, 11))
    assert difference(logits_of(tmp_path / "small"), expected) < 0.1
    write_pruned(checkpoint, plan, tmp_path / "checked", check=True)


def test_old_buffers_on_disk_are_left_behind(toy: Toy, tmp_path: Path) -> None:
    """Pythia's files carry attention masks and inverse frequencies: known junk, not written out."""
    source = Path(shutil.copytree(toy("gpt_neox"), tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 16, 16)
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    prune_to(source, tmp_path / "small", {"ffn": 56})
    names = load_file(tmp_path / "small" / "model.safetensors").keys()
    assert names == load_file(toy("gpt_neox") / "model.safetensors").keys()


def test_alternating_attention_follows_its_layers(toy: Toy, tmp_path: Path) -> None:
    """An old config says only `sliding_window_pattern`; after a depth prune each layer keeps the kind it had."""
    source = Path(shutil.copytree(toy("gemma3_text"), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["layer_types"]
    (source / "config.json").write_text(json.dumps({**config, "sliding_window_pattern": 2}))
    plan = prune_to(source, tmp_path / "small", {"layer": 2}, seed=3)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    small = json.loads((tmp_path / "small" / "config.json").read_text())
    assert small["layer_types"] == [kinds[i] for i in plan.kept["layer"]]
    masked = masked_source(load(source), open_checkpoint(source).family, plan)(toy_ids(2, 11))
    assert difference(logits_of(tmp_path / "small"), masked) < 2e-5


@pytest.mark.parametrize(
    ("model_type", "name", "key"),
    [
        ("glm4_moe", "model.layers.3.eh_proj.weight", "num_nextn_predict_layers"),
        ("qwen3_5_text", "mtp.fc.weight", "mtp_num_hidden_layers"),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out_and_named(
    model_type: str, name: str, key: str, toy: Toy, tmp_path: Path
) -> None:
    from minitron_cli.prune.preflight import prune_facts

    source = tmp_path / "source"
    shutil.copytree(toy(model_type), source)
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, name: torch.ones(4, 4)}, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, key: 1}))
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, sizes_for(model_type, "layer"))
    warnings = prune_facts(checkpoint, plan.target, tmp_path / "small", None, None).warnings
    assert any("1 tensors that predict tokens beyond the next are left out" in text for text in warnings)
    write_pruned(checkpoint, plan, tmp_path / "small")
    assert name not in open_checkpoint(tmp_path / "small").tensors
    assert open_checkpoint(tmp_path / "small").config[key] == 0
