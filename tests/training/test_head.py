"""Heads of every family against the model's own logits: scales, soft-caps, biases, and what must be refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.training.head import Head, check_head, head_of, logit_rule, logits
from minitron_cli.training.objectives import Objective
from minitron_cli.training.step import kd_step
from minitron_cli.training.student import Taps
from tests.toys import BASE, TOY_CONFIGS

# Families beyond the prunable ones whose heads do something of their own. Factors far from 1 leave no doubt.
SPECIAL: dict[str, dict[str, Any]] = {
    "cohere": {**BASE, "head_dim": 8, "logit_scale": 0.2},
    "hyperclovax": {**TOY_CONFIGS["hyperclovax"], "logits_scaling": 3.0},
    "cohere2": {**TOY_CONFIGS["cohere2"], "logit_scale": 0.2},
    "gemma2": {**TOY_CONFIGS["gemma2"], "final_logit_softcapping": 0.3},
    "gemma3_text": {**TOY_CONFIGS["gemma3_text"], "final_logit_softcapping": 0.3},
    "granite": {**TOY_CONFIGS["granite"], "logits_scaling": 6.0},
}
FAMILIES = {**TOY_CONFIGS, **SPECIAL}


def build(model_type: str, **overrides: Any) -> nn.Module:
    """A random model whose norm gains are not 1."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**FAMILIES[model_type], **overrides})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_head_makes_the_models_own_logits(model_type: str) -> None:
    model = build(model_type)
    ids = torch.randint(0, 97, (2, 9))
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    found = logits(hidden.flatten(0, 1), head_of(model)).view(2, 9, -1)
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-5, atol=1e-6)
    check_head(model)


@pytest.mark.parametrize("model_type", SPECIAL)
def test_rules_are_not_one(model_type: str) -> None:
    """Negative control: without its rule the family's head is another one."""
    model = build(model_type)
    assert logit_rule(model.config) != (1.0, None)
    ids = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        hidden = model.base_model(ids, use_cache=False).last_hidden_state[0]
        plain = logits(hidden, Head(head_of(model).weight))
    assert not torch.allclose(plain, model(ids).logits[0], rtol=1e-2)


def test_head_with_another_convention_is_refused() -> None:
    model = build("llama")
    model.lm_head.register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(MinitronError, match=r"the teacher's logits \(llama\) are not its head applied"):
        kd_step(build("llama"), model)


def test_weights_that_are_not_finite_are_named() -> None:
    model: Any = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(MinitronError, match="the student's logits are NaN") as refused:
        check_head(model, "student")
    assert "model.layers.1.mlp.up_proj.weight;" in refused.value.hint


def test_check_leaves_the_mode_alone() -> None:
    model = build("llama").train()
    check_head(model)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_heads_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 16).to(dtype), torch.randn(5000, 16).to(dtype)
    found = logits(hidden, Head(weight))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float() @ weight.float().T)


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
@torch.no_grad()
def test_states_can_be_read_in_every_family(model_type: str) -> None:
    """Every block and the embedding: the state is the input of the next block, normed by what reads it."""
    model = build(model_type)
    ids = torch.randint(0, 97, (2, 9))
    depth = model.config.num_hidden_layers
    last, states = Taps(model, range(-1, depth)).run(ids)
    raw, decoder = model(ids, output_hidden_states=True), model.base_model
    names = ("norm", "final_layer_norm", "embedding_norm", "final_layernorm", "norm_f")
    final = next(getattr(decoder, name) for name in names if hasattr(decoder, name))
    assert sorted(states) == list(range(-1, depth))
    torch.testing.assert_close(states[depth - 1], last)
    for block, following in pairwise(range(-1, depth)):
        reader = decoder.layers[following]
        names = ("input_layernorm", "operator_norm", "attention_layernorm", "norm")
        norm = next((getattr(reader, name) for name in names if hasattr(reader, name)), final)
        torch.testing.assert_close(states[block], norm(raw.hidden_states[following]))


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_every_family_distils_into_a_copy_of_itself(model_type: str) -> None:
    """Two passes of one model: loss and gradient exactly 0, so nothing in between is applied to one side only."""
    student, teacher = build(model_type), build(model_type)
    objective = Objective(layer_map=((1, 1),), embedding=True, metric="mse", alpha=1.0)
    weights = torch.full((2, 9), 1 / 16)
    weights[:, -1] = 0
    terms = kd_step(student, teacher, objective)(torch.randint(0, 97, (2, 9)), weights)
    terms["loss"].backward()
    assert terms["loss"] == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in student.parameters())
