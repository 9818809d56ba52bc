"""A model that is built empty and then filled is the model that transformers loads, or draws, to the bit."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.hf.draw import draw
from minitron_cli.hf.empty import empty_model, materialise
from minitron_cli.hf.fill import fill
from minitron_cli.hf.load import load_config, load_model
from minitron_cli.training.inputs import check_weights
from minitron_cli.training.load import load_teacher
from tests.quantising import OSS, quantise_fp8, quantise_mxfp4
from tests.toys import TOY_CONFIGS

CPU = torch.device("cpu")


def empty(path, dtype=torch.float32):
    model = empty_model(load_config(path), dtype)
    assert all(p.is_meta for p in model.parameters())
    materialise(model, CPU)
    return model


def require_same(found, expected):
    """Equal names, bits, types and ties of parameters, and equal buffers."""
    for part in ("parameters", "buffers"):
        ours, theirs = (dict(getattr(m, f"named_{part}")(remove_duplicate=False)) for m in (found, expected))
        assert list(ours) == list(theirs)
        wrong = [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])]
        assert not wrong
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in expected.named_parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_a_filled_model_is_what_transformers_loads(toy, model_type, dtype):
    model = empty(toy(model_type), dtype)
    fill(model, toy(model_type))
    require_same(model, load_model(toy(model_type), dtype))


@pytest.mark.parametrize(
    ("model_type", "sizes", "quantise"),
    [
        ("llama", {}, partial(quantise_fp8, block=(4, 4))),  # transformers takes no ragged blocks
        ("qwen3_moe", {}, partial(quantise_fp8, block=(4, 4))),
        ("gpt_oss", OSS, quantise_mxfp4),
    ],
)
def test_quantised_weights_are_filled_as_transformers_dequantises_them(toy, tmp_path, model_type, sizes, quantise):
    """A quantised teacher is one that transformers loads where it has no kernels; a student is refused."""
    pytest.importorskip("accelerate")
    place = quantise(toy(model_type, **sizes), tmp_path) / "quantised"
    found, expected = load_teacher(place, torch.bfloat16), load_model(place, torch.bfloat16)
    ours, theirs = (dict(model.named_parameters()) for model in (found, expected))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())
    check_weights(place, frozen=True)
    with pytest.raises(MinitronError, match="quantised with"):
        check_weights(place)


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_drawn_weights_are_those_of_from_config(toy, model_type):
    model = empty(toy(model_type))
    draw(model, seed=3)
    ours = torch.rand(1)
    torch.manual_seed(3)
    expected = AutoModelForCausalLM.from_config(load_config(toy(model_type)), dtype=torch.float32)
    require_same(model, expected)
    assert torch.equal(ours, torch.rand(1))


@pytest.fixture
def broken(toy, tmp_path):
    shutil.copytree(toy("qwen2"), tmp_path / "model")
    return tmp_path / "model"


def rewrite(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_misshapen_weights_are_named(broken):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(broken, lambda tensors: tensors.update({name: tensors[name][1:].clone()}))
    with pytest.raises(MinitronError, match=r"up_proj\.weight has shape \[87, 48\], the config says \[88, 48\]"):
        fill(empty(broken), broken)
    rewrite(broken, lambda tensors: tensors.pop(name))
    with pytest.raises(MinitronError, match=r"lacks 1 of its weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        fill(empty(broken), broken)


def test_a_tied_weight_may_be_stored_under_either_name_or_both(toy, broken):
    expected = load_model(toy("qwen2"), torch.float32)
    rewrite(broken, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    for _ in range(2):
        model = empty(broken)
        fill(model, broken)
        require_same(model, expected)
        rewrite(broken, lambda t: t.update({"model.embed_tokens.weight": t["lm_head.weight"].clone()}))


def test_a_weight_without_a_rule_is_not_made_up(toy, monkeypatch):
    """Without transformers' rule for it, memory would be left as it was found."""
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", lambda self, module, is_custom_code=False: None)
    with pytest.raises(MinitronError, match=r"has no rule for new weights of model\.embed_tokens\.weight"):
        draw(empty(toy("llama")), seed=0)


def test_a_value_that_a_constructor_changes_afterwards_is_not_made_up(toy, monkeypatch):
    """It is registered, loses its memory, and what is written into it later is lost."""
    from transformers.activations import XIELUActivation

    original = XIELUActivation.__init__

    def changed(self, *given, **named):
        original(self, *given, **named)
        with torch.no_grad():
            self.alpha_p.fill_(3.0)

    monkeypatch.setattr(XIELUActivation, "__init__", changed)
    with pytest.raises(MinitronError, match=r"has no rule for new weights of model\.layers\.0\.mlp\.act_fn\.alpha_p"):
        draw(empty(toy("apertus")), seed=0)


def test_blocks_of_a_file_join_up(toy, monkeypatch):
    monkeypatch.setattr("minitron_cli.hf.fill._BLOCK_BYTES", 1000)
    model = empty(toy("llama"))
    fill(model, toy("llama"))
    require_same(model, load_model(toy("llama"), torch.float32))
