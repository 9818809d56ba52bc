"""What cannot be loaded is said in one line, and nothing is filled with random weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.hf.load import config_of, load_model, load_tokenizer, model_of_tensors, new_model
from tests.toys import TOY_CONFIGS, toy_ids

CPU = torch.device("cpu")


def test_a_model_is_what_transformers_loads_and_frozen(toy):
    model = load_model(toy("llama"), torch.float32, CPU)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    ids = toy_ids(1, 9)
    expected = AutoModelForCausalLM.from_pretrained(toy("llama"), dtype=torch.float32)(ids).logits
    assert torch.equal(model(ids).logits, expected)


def test_a_model_of_tensors_is_the_model_of_their_file(toy):
    tensors = load_file(toy("mixtral") / "model.safetensors")
    config = config_of(json.loads((toy("mixtral") / "config.json").read_text()))
    model = model_of_tensors(config, tensors, torch.float32, CPU)
    ids = toy_ids(1, 9)
    assert torch.equal(model(ids).logits, load_model(toy("mixtral"), torch.float32)(ids).logits)


def test_new_weights_follow_from_the_seed_and_none_are_made_on_meta():
    config = config_of({"model_type": "llama", **TOY_CONFIGS["llama"]})
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(new_model(config, torch.float32, CPU).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert next(new_model(config, torch.float32, torch.device("meta")).parameters()).is_meta


@pytest.fixture
def broken(toy, tmp_path):
    shutil.copytree(toy("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_missing_weights_are_named(broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MinitronError, match=r"lacks 1 of its weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(broken, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 60}, "does not load"),
        ({"hidden_act": "wat"}, "does not load: 'wat'"),
        ({"num_hidden_layers": "three"}, "does not load"),
        ({"model_type": "no_such_type"}, "does not load"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(broken, change, message):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MinitronError, match=message):
        load_model(broken, torch.float32)


def test_a_directory_without_config_and_pickled_weights_are_refused(broken):
    torch.save({"weight": torch.zeros(1)}, broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(MinitronError, match="does not load"):
        load_model(broken, torch.float32)
    (broken / "config.json").unlink()
    for load in (lambda: load_model(broken, torch.float32), lambda: load_tokenizer(broken)):
        with pytest.raises(MinitronError, match=r"no config\.json"):
            load()


def test_a_device_map_that_does_not_exist_is_an_error(toy):
    with pytest.raises(MinitronError, match="does not load"):
        load_model(toy("llama"), torch.float32, device_map="x")
