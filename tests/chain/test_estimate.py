"""A recipe's steps are estimated as their verbs act: prune against what it writes, for each of its options."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from minitron_cli.chain.estimate import Estimate, estimate
from minitron_cli.chain.run import run
from minitron_cli.chain.summary import known_configs
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.errors import MinitronError
from minitron_cli.prune.execute import prune
from minitron_cli.prune.request import PruneRequest, request_from_options
from minitron_cli.spec.recipe import Input, Recipe, Step
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import shape_of
from tests.prune.cutting import random_scores

Toy = Callable[..., Path]
# Every option of prune: what cuts a toy, what goes with it, and values that leave the sizes as they are.
CUTS: dict[str, Any] = {
    "hidden": 36, "ffn": 56, "heads": 4, "kv-heads": 1, "layers": 2, "drop-layers": "0,2", "experts": 3,
    "expert-ffn": 16, "shared-ffn": 32, "experts-per-token": 1, "params": "85.7K",
    "key-heads": 1, "value-heads": 2, "mamba-heads": 8, "mamba-head-dim": 6,
}  # fmt: skip
MODELS = {
    "ffn": "llama",
    "key-heads": "qwen3_5_text",
    "value-heads": "qwen3_5_text",
    "mamba-heads": "falcon_h1",
    "mamba-head-dim": "falcon_h1",
}  # fmt: skip; the others: qwen2_moe
WITH: dict[str, dict[str, Any]] = {
    "key-heads": {"value-heads": 2},
    "kv-heads": {"heads": 3},
    "target": {"layers": 2},
    "ridge": {"compensate": "least-squares"},
    "moments": {"compensate": "least-squares"},
    "select": {"compensate": "least-squares"},
    "rotate": {"compensate": "least-squares", "hidden": 36},
}
OTHERS: dict[str, Any] = {
    "target": "depth", "multiple-of": 4, "scores": "scores", "data": "text", "samples": 8, "seq-len": 16,
    "compensate": "least-squares", "moments": "scores", "ridge": "auto", "select": "residual", "rotate": True,
    "keep-pattern": True,
    "output": "elsewhere", "max-shard-size": "1K", "check": True, "force": True, "overwrite": True,
}  # fmt: skip
# What needs text, an expert pass or another kind of source to be settled:
# `test_a_cut_of_the_vocabulary_is_estimated_by_its_size`, and tests/cli/test_vocabulary, tests/prune/test_merge,
# test_expert_refit, test_wrapped and test_dequantise for the rest.
SETTLED_ELSEWHERE = (
    "vocab",
    "vocab-coverage",
    "keep-tokens",
    "expert-merge",
    "expert-refit",
    "text-only",
    "dequantize",
    "dtype",
)
FLAGS = [field.name.replace("_", "-") for field in fields(PruneRequest) if field.name != "model"]


def _config(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())


def _estimate(config: Mapping[str, Any], options: Mapping[str, Any], **inputs: str) -> Estimate:
    """The estimate of one prune step, from a config alone."""
    given = {"model": ("{model}",), "scores": ("scores",), **{key: (value,) for key, value in inputs.items()}}
    step = Step("cut", "prune", {k: v for k, v in given.items() if v != ("",)}, options)
    return estimate(Recipe("r", "", {}, (step,)), {"{model}": config})[0]


def _written(model: Path, options: Mapping[str, Any], directory: Path) -> tuple[int, int]:
    """Parameters and bytes of what prune writes with these options, counted tensor by tensor."""
    shape = open_checkpoint(model).shape
    provenance = {"model": {"name": "toy", "digest": source_digest(model)}}
    write_scores(directory / "scores", Scores(random_scores(shape).values, provenance))
    given = {**options, "scores": directory / "scores", "output": directory / "cut"}
    prune(request_from_options(str(model), given), lambda wanted: pytest.fail("nothing was to be measured"))
    with safe_open(directory / "cut" / "model.safetensors", framework="numpy") as stream:
        sizes = [prod(stream.get_slice(name).get_shape()) for name in stream.keys()]  # noqa: SIM118
    return sum(sizes), 4 * sum(sizes)


def test_every_option_of_prune_is_tried() -> None:
    assert sorted({*CUTS, *OTHERS, *SETTLED_ELSEWHERE}) == sorted(FLAGS)


@pytest.mark.parametrize("flag", CUTS)
def test_a_cut_is_estimated_as_it_is_written(flag: str, toy: Toy, tmp_path: Path) -> None:
    model = toy(MODELS.get(flag, "qwen2_moe"))
    options = {flag: CUTS[flag], **WITH.get(flag, {})}
    found, (parameters, size) = _estimate(_config(model), options), _written(model, options, tmp_path)
    assert found.model is not None
    if flag == "params":  # which units stay is not known before there are scores, only how many
        assert abs(found.model.parameters / 85_700 - 1) < 0.02
        assert abs(parameters / 85_700 - 1) < 0.02
        return
    assert (found.model.parameters, found.disk_bytes) == (parameters, size)
    if flag != "experts-per-token":
        assert parameters < _parameters(model)
    else:
        assert found.model.config["num_experts_per_tok"] == 1


def _parameters(model: Path) -> int:
    return sum(prod(tensor.shape) for tensor in open_checkpoint(model).tensors.values())


@pytest.mark.parametrize("flag", OTHERS)
def test_what_cuts_nothing_changes_no_estimate(flag: str, toy: Toy) -> None:
    config = _config(toy("llama"))
    base = {"layers": 2, "ffn": 56, "hidden": 36} if flag == "multiple-of" else {"layers": 2}
    options = {**base, **WITH.get(flag, {})}
    plain, changed = _estimate(config, options), _estimate(config, {**options, flag: OTHERS[flag]})
    assert changed.model == plain.model
    assert changed.disk_bytes == plain.disk_bytes


def test_a_cut_of_the_vocabulary_is_estimated_by_its_size(toy: Toy) -> None:
    config = _config(toy("llama"))
    found = _estimate(config, {"vocab": 64}, scores="", data="text")
    matrices = 1 if config["tie_word_embeddings"] else 2
    lost = matrices * (config["vocab_size"] - 64) * config["hidden_size"]
    assert found.model is not None
    assert found.model.parameters == _parameters(toy("llama")) - lost
    with pytest.raises(MinitronError, match="vocab-coverage"):
        _estimate(config, {"vocab-coverage": "99%"}, scores="", data="text")


def test_heads_without_groups_take_their_keys_and_values_along(toy: Toy, tmp_path: Path) -> None:
    """Llama-2 7B's recipe once died here: `heads: 24` left the KV heads where they were."""
    model = toy("llama", num_key_value_heads=6)
    found = _estimate(_config(model), {"heads": 4})
    assert found.model is not None
    assert (found.model.shape["head"], found.model.shape["kv"]) == (4, 4)
    assert (found.model.parameters, found.disk_bytes) == _written(model, {"heads": 4}, tmp_path)


def test_a_calibration_pass_of_the_prune_step_counts(toy: Toy) -> None:
    config = _config(toy("llama"))
    found = _estimate(config, {"ffn": 56, "samples": 5, "seq-len": 16}, scores="", data="text")
    assert found.tokens == 5 * 16
    assert found.flops > 0
    assert _estimate(config, {"drop-layers": "1"}, scores="", data="text").tokens == 0


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"ffn": 999}, {}, "step 'cut': --ffn 999 is larger than the source's 88"),
        ({"hidden": "many"}, {}, "step 'cut': 'many' is not a count"),
        ({"ffn": 56}, {"scores": ""}, "step 'cut': no scores for ffn"),
        ({"drop-layers": "0-999999999999"}, {}, "step 'cut': --drop-layers"),
        ({}, {}, "step 'cut': no target size is given"),
    ],
)
def test_what_the_verb_refuses_is_refused_before_the_first_step(
    options: dict[str, Any], inputs: dict[str, str], message: str, toy: Toy
) -> None:
    with pytest.raises(MinitronError) as caught:
        _estimate(_config(toy("llama")), options, **inputs)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_step_that_its_verb_refuses_stops_the_run_before_the_first_one(toy: Toy, tmp_path: Path) -> None:
    steps = (Step("world", "toy", {}, {}), Step("cut", "prune", {"model": ("{m}",)}, {"ffn": 999}))
    recipe = Recipe("r", "", {"m": Input("a model")}, steps, {"m": str(toy("llama"))})
    with pytest.raises(MinitronError, match="step 'cut': --ffn 999 is larger"):
        run(recipe, tmp_path / "run", lambda words: pytest.fail("a step ran"), lambda text: None)
    assert not (tmp_path / "run").exists()


def test_a_chain_is_estimated_step_after_step(toy: Toy) -> None:
    config = _config(toy("llama"))
    steps = (
        Step("scores", "importance", {"model": ("{m}",), "data": ("text",)}, {"samples": "1K", "seq-len": 16}),
        Step("cut", "prune", {"model": ("{m}",), "scores": ("scores",)}, {"ffn": 56}),
        Step("small", "distill", {"student": ("cut",), "teacher": ("{m}",), "data": ("text",)},
             {"tokens": "1K", "batch": 4, "seq-len": 16, "export-dtype": "bfloat16"}),
        Step("next", "prune", {"model": ("small",), "scores": ("scores",)}, {"hidden": 36}),
        Step("whole", "train", {"model": ("cut",), "data": ("text",)}, {"seq-len": 16}),
    )  # fmt: skip
    costs = {cost.step.name: cost for cost in estimate(Recipe("r", "", {}, steps), {"{m}": config})}
    assert costs["scores"].tokens == 1000 * 16
    assert costs["small"].tokens == 16 * 4 * 16, "whole batches"
    assert costs["whole"].tokens == 0, "one pass over data that nobody has counted"
    assert costs["cut"].disk_bytes == 2 * costs["small"].disk_bytes, "bfloat16 after float32"
    next_model = costs["next"].model
    assert next_model is not None
    assert next_model.shape == shape_of(next_model.family, config).with_(hidden=36, ffn=56)
    assert costs["next"].disk_bytes == 2 * next_model.parameters


def test_a_model_below_an_input_is_estimated_by_its_config(toy: Toy, tmp_path: Path) -> None:
    source = toy("llama")
    steps = (Step("cut", "prune", {"model": (f"{{models}}/{source.name}",), "scores": ("{scores}",)}, {"hidden": 36}),)
    recipe = Recipe("r", "", {}, steps, given={"models": str(source.parent)})
    assert known_configs(recipe, tmp_path).keys() == {f"{{models}}/{source.name}"}
