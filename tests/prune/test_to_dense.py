"""One expert left: a dense model of another type, equal to the source that routes to that expert alone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitron_cli.chain.estimate import estimate
from minitron_cli.chain.shear import shear
from minitron_cli.checkpoint.provenance import read_manifest, read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.families import FAMILIES, family_of
from minitron_cli.prune.execute import dry_run, prune
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Merge, plan_problems
from minitron_cli.spec.recipe import Recipe, Step
from minitron_cli.spec.scores import Scores
from minitron_cli.training.run import train
from tests.prune.cutting import difference, load, logits_of, plan_for, random_scores
from tests.prune.reading import fuse_experts
from tests.prune.test_merge import copies, experts_of
from tests.toys import TOY_CONFIGS, make_toy, toy_ids
from tests.training.runs import options, write_text
from tests.wrapped import WRAPPED, TextView, image_batch, load_whole, make_wrapped

TOLERANCE = 2e-5  # float32, relative to the spread of the logits
DENSE = {name: one.dense.model_type for one in FAMILIES for name in one.model_types if one.dense is not None}
LAYOUTS = [(name, layout) for name in DENSE for layout in ("disk", "memory")]
# What the configs of toys do not name: where classes differ in their defaults, the mixture's hold.
UNSAID = ("rms_norm_eps", "sliding_window", "rope_parameters", "head_dim", "router_aux_loss_coef")
Toy = Callable[..., Path]


def scored(source: Path, file: Path) -> Path:
    provenance = {"model": {"name": source.name, "digest": source_digest(source)}}
    write_scores(file, Scores(random_scores(open_checkpoint(source).shape).values, provenance))
    return file


def request(source: Path, tmp_path: Path, **sizes: Any) -> PruneRequest:
    scores = scored(source, tmp_path / "scores.safetensors")
    return PruneRequest(model=str(source), scores=scores, output=tmp_path / "small", experts=1, **sizes)


def run(request: PruneRequest) -> Any:
    return prune(request, lambda wanted: pytest.fail("there are scores"))


def stored(toy: Toy, model_type: str, layout: str, tmp_path: Path, **overrides: Any) -> Path:
    source = toy(model_type, **overrides)
    return fuse_experts(source, tmp_path / "fused") if layout == "memory" else source


def routed_once(model: Any) -> Any:
    """The model with one expert a token, as the target has."""
    for module in model.modules():
        if hasattr(module, "top_k"):
            module.top_k = 1
    return model


def sparse_logits(source: Path, plan: Any) -> torch.Tensor:
    return masked_source(routed_once(load(source)), open_checkpoint(source).family, plan)(toy_ids(2, 11))


@pytest.mark.parametrize(("model_type", "layout"), LAYOUTS)
@pytest.mark.parametrize("sizes", [{}, {"hidden": 32, "heads": 4, "expert_ffn": 16, "layers": 2}, {"expert_ffn": 15}])
def test_the_dense_model_is_the_masked_source(
    toy: Toy, tmp_path: Path, model_type: str, layout: str, sizes: dict[str, int]
) -> None:
    source = stored(toy, model_type, layout, tmp_path)
    made = run(request(source, tmp_path, **sizes))
    small = tmp_path / "small"
    assert json.loads((small / "config.json").read_text())["model_type"] == DENSE[model_type]
    assert type(load(small)).__name__.lower() == f"{DENSE[model_type]}forcausallm"
    expected = sparse_logits(source, made.plan)
    assert difference(logits_of(small), expected) < TOLERANCE
    assert difference(expected, logits_of(source)) > 1e-2, "the cut changed nothing: the test proves nothing"
    assert verify(small, str(source), forward=True).problems == []
    left = open_checkpoint(small)
    assert left.shape == read_plan(small).left == made.plan.left
    assert made.facts.model_type == (model_type, DENSE[model_type])
    assert made.facts.parameters[1] == sum(prod(tensor.shape) for tensor in left.tensors.values())
    assert made.facts.bytes[1] == sum(tensor.num_bytes for tensor in left.tensors.values())
    assert read_manifest(small)["options"]["dense"] == DENSE[model_type]
    assert not any("expert" in key for key in left.config)


def test_another_expert_would_show(toy: Toy, tmp_path: Path) -> None:
    made = run(request(toy("mixtral"), tmp_path))
    other = replace(made.plan, kept={**made.plan.kept, "expert": (made.plan.kept["expert"] + 1) % 5})
    assert difference(logits_of(tmp_path / "small"), sparse_logits(toy("mixtral"), other)) > 1e-2


@pytest.mark.parametrize("model_type", DENSE)
def test_what_the_config_leaves_unsaid_is_the_mixtures(toy: Toy, tmp_path: Path, model_type: str) -> None:
    source = Path(shutil.copytree(toy(model_type), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    derived = config["hidden_size"] % config["num_attention_heads"] == 0 and config.get("head_dim") in (None, 8)
    unsaid = [key for key in UNSAID if key != "head_dim" or derived]
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in unsaid}))
    made = run(request(source, tmp_path))
    assert difference(logits_of(tmp_path / "small"), sparse_logits(source, made.plan)) < TOLERANCE


@pytest.mark.parametrize("overrides", [{"sliding_window": 4}, {"sliding_window": 4, "use_sliding_window": True}])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_sliding_windows_are_those_of_the_mixture(
    toy: Toy, tmp_path: Path, model_type: str, overrides: dict[str, Any]
) -> None:
    source = toy(model_type, **overrides)
    made = run(request(source, tmp_path))
    assert difference(logits_of(tmp_path / "small"), sparse_logits(source, made.plan)) < TOLERANCE


@pytest.mark.parametrize(("model_type", "layout"), LAYOUTS)
def test_merging_all_into_one(toy: Toy, tmp_path: Path, model_type: str, layout: str) -> None:
    """Copies of one expert in other orders merge into it without changing a bit; others make the literal average."""
    model = load(toy(model_type))
    with torch.no_grad():
        for _, experts in experts_of(model):
            copies(True)(experts)
    model.save_pretrained(tmp_path / "source")
    source = fuse_experts(tmp_path / "source", tmp_path / "fused") if layout == "memory" else tmp_path / "source"
    checkpoint = open_checkpoint(source)
    plan = replace(plan_for(checkpoint, {"expert": 1, "expert_active": 1}), dense=True)
    layers = plan.target["layer"]
    plain = replace(plan, kept={**plan.kept, "expert": np.zeros((layers, 1), np.int64)})
    shares = np.tile([0.25, 0.75, 0, 0, 0], (layers, 1))  # 1 is a copy of 0, its neurons in another order
    merged = replace(plain, merge=Merge(np.zeros((layers, 5), np.int64), shares))
    write_pruned(checkpoint, plain, tmp_path / "plain")
    write_pruned(checkpoint, merged, tmp_path / "merged")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        tmp_path / "merged" / "model.safetensors"
    ).read_bytes()
    assert verify(tmp_path / "merged", str(source)).problems == []


def test_a_tensor_split_in_two_lies_in_one_shard(toy: Toy, tmp_path: Path) -> None:
    source = stored(toy, "mixtral", "memory", tmp_path)
    made = run(request(source, tmp_path, max_shard_size=6_000))
    assert len(list((tmp_path / "small").glob("model-*.safetensors"))) > 3
    assert difference(logits_of(tmp_path / "small"), sparse_logits(source, made.plan)) < TOLERANCE
    assert verify(tmp_path / "small", str(source)).problems == []


def test_a_second_cut_and_a_mixture_of_one(toy: Toy, tmp_path: Path) -> None:
    """What came out is cut as any dense model; a mixture that has one expert becomes dense without a cut."""
    run(request(toy("mixtral"), tmp_path, expert_ffn=16))
    small = tmp_path / "small"
    scores = scored(small, tmp_path / "again.safetensors")
    run(PruneRequest(model=str(small), ffn=8, hidden=36, scores=scores, output=tmp_path / "smaller"))
    assert verify(tmp_path / "smaller", str(small)).problems == []
    lone = make_toy("mixtral", tmp_path / "lone", num_local_experts=1, num_experts_per_tok=1)
    run(PruneRequest(model=str(lone), experts=1, output=tmp_path / "dense"))
    assert difference(logits_of(tmp_path / "dense"), logits_of(lone)) < TOLERANCE
    assert verify(tmp_path / "dense", str(lone)).problems == []


def test_what_stays_a_mixture_says_why(toy: Toy, tmp_path: Path) -> None:
    found = dry_run(request(toy("olmoe"), tmp_path, experts_per_token=1))
    assert any("no dense model type computes the same" in text for text in found.facts.warnings)
    assert found.facts.model_type == ("olmoe", "olmoe")
    uneven = toy("qwen3_moe", mlp_only_layers=[0])
    found = dry_run(request(uneven, tmp_path))
    assert any("88 neurons and the expert 24" in text for text in found.facts.warnings)
    even = request(uneven, tmp_path, ffn=24)
    made = run(even)
    assert made.facts.model_type == ("qwen3_moe", "qwen3")
    assert difference(logits_of(tmp_path / "small"), sparse_logits(uneven, made.plan)) < TOLERANCE


def test_a_plan_of_several_experts_is_no_dense_one(toy: Toy) -> None:
    plan = plan_for(open_checkpoint(toy("mixtral")), {"expert": 3})
    assert plan_problems(plan.source, plan.target, plan.kept, None, None, True) == [
        "3 experts a layer are not a dense MLP"
    ]


def test_a_recipe_counts_the_dense_model(toy: Toy, tmp_path: Path) -> None:
    """And the step after it sees one."""
    source, data = toy("qwen3_moe"), ("text",)
    steps = (
        Step("cut", "prune", {"model": ("{m}",), "data": data}, {"experts": 1}),
        Step("smaller", "prune", {"model": ("cut",), "data": data}, {"ffn": 16}),
    )
    config = json.loads((source / "config.json").read_text())
    first, second = estimate(Recipe("r", "", {}, steps), {"{m}": config})
    run(request(source, tmp_path))
    assert first.disk_bytes == sum(t.num_bytes for t in open_checkpoint(tmp_path / "small").tensors.values())
    assert second.model is not None
    assert second.model.config["intermediate_size"] == 16


def test_masks_can_leave_one_expert(tmp_path: Path) -> None:
    source = make_toy("mixtral", tmp_path / "source", num_experts_per_tok=1)
    text, out = write_text(tmp_path / "text.jsonl"), tmp_path / "out"
    wanted = options(source, text, out, verb="shear", steps=4, sizes=("experts=1",), max_gap=1.0)
    shear(wanted)
    assert open_checkpoint(out).config["model_type"] == "mistral"
    assert verify(out).problems == []
    assert difference(logits_of(out), sparse_logits(out / "run" / "masked", read_plan(out))) < TOLERANCE


def test_the_mixture_teaches_it(toy: Toy, tmp_path: Path) -> None:
    run(request(toy("mixtral"), tmp_path))
    text = write_text(tmp_path / "text.jsonl")
    train(options(tmp_path / "small", text, tmp_path / "taught", toy("mixtral"), steps=3, loss="logits+hidden"))
    assert verify(tmp_path / "taught").problems == []
    assert open_checkpoint(tmp_path / "taught").config["model_type"] == "mistral"


def test_the_text_model_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**TOY_CONFIGS["qwen3_moe"], "model_type": "qwen3_moe"}
    monkeypatch.setitem(WRAPPED["internvl"], "text_config", text)
    source = make_wrapped("internvl", tmp_path / "source")
    made = run(request(source, tmp_path))
    small, view, batch = (
        load_whole(tmp_path / "small"),
        TextView(routed_once(load_whole(source))),
        image_batch("internvl"),
    )
    assert small.config.text_config.model_type == "qwen3"
    masked = masked_source(view, open_checkpoint(source).family, made.plan)
    view.images = {name: value for name, value in batch.items() if name != "input_ids"}
    with torch.no_grad():
        assert difference(small(**batch, use_cache=False).logits, masked(batch["input_ids"])) < TOLERANCE
    assert verify(tmp_path / "small", str(source)).problems == []


def test_the_tables_lines_are_those_of_the_dense_family() -> None:
    for model_type, dense_type in DENSE.items():
        one, other = family_of(model_type), family_of(dense_type)
        assert one.dense is not None
        named = {name for names in one.dense.lines.values() for name in names}
        layout = {w.layout for w in one.weights if w.name in one.dense.lines}
        assert named <= {weight.name for weight in other.weights}
        for name in layout:
            expected = one.expected(TOY_CONFIGS[model_type], name)
            kept = [w for w in expected if one.dense.keeps(w)]
            made = {n for w in kept for n in one.dense.lines.get(w.name, (w.name,))}
            assert made == {w.name for w in other.expected(TOY_CONFIGS[model_type])}
