"""What a pruned model is good for: it generates, it can be pruned again, and dead units go unnoticed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.axes import axes_of
from minitron_cli.spec.family import match
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores
from tests.prune.cutting import ALL_CASES, difference, load, logits_of, prune_to, random_scores, sizes_for
from tests.toys import TOY_CONFIGS, make_toy, toy_ids

Toy = Callable[..., Path]


@pytest.mark.parametrize(("model_type", "cut"), ALL_CASES)
def test_greedy_generation_with_cache(model_type: str, cut: str, toy: Toy, tmp_path: Path) -> None:
    prune_to(toy(model_type), tmp_path / "small", sizes_for(model_type, cut))
    model, ids = load(tmp_path / "small"), toy_ids(1, 5)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **settings)
    assert cached.shape == (1, 11)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_a_second_prune_of_a_pruned_model(model_type: str, toy: Toy, tmp_path: Path) -> None:
    """Pruning twice is pruning once with the composed indices: the same bytes."""
    source = toy(model_type)
    checkpoint = open_checkpoint(source)
    ratio = "head_dim" in checkpoint.shape and "head_dim" not in checkpoint.family.config_keys
    ratio |= "mamba_expand" in checkpoint.family.computed
    depth = checkpoint.shape["layer"] - 1
    first = {"ffn": 72, "layer": depth, **({} if ratio else {"hidden": 42})}
    second = {"ffn": 56, **({} if checkpoint.shape.kinds else {"layer": 1}), **({} if ratio else {"hidden": 36})}
    if "ffn" not in checkpoint.shape:
        first["expert_ffn"], second["expert_ffn"] = 20, 16
        del first["ffn"], second["ffn"]
    one = prune_to(source, tmp_path / "one", first, seed=1)
    two = prune_to(tmp_path / "one", tmp_path / "two", second, seed=2)
    rows = two.kept.get("layer", np.arange(depth))  # each kind of layer has to stay
    outer = {axis: index[rows] if index.ndim > 1 else index for axis, index in one.kept.items()}
    composed = {axis: np.take_along_axis(outer[axis], index, axis=-1) for axis, index in two.kept.items()}
    composed.setdefault("layer", one.kept["layer"])
    target = target_shape(checkpoint, Target({**second, "layer": len(composed["layer"])}))
    direct = Plan(checkpoint.shape, target.of_layers(composed["layer"].tolist(), checkpoint.shape), composed)
    write_pruned(checkpoint, direct, tmp_path / "direct")
    a, b = (tmp_path / d / "model.safetensors" for d in ("two", "direct"))
    assert difference(logits_of(tmp_path / "two"), logits_of(tmp_path / "direct")) < 1e-5
    if checkpoint.family.repair is None:
        assert a.read_bytes() == b.read_bytes()
    stored = read_plan(tmp_path / "two")
    assert stored is not None
    assert all(np.array_equal(stored.kept[axis], index) for axis, index in two.kept.items())


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_planted_dead_units_are_cut_without_a_trace(model_type: str, tmp_path: Path) -> None:
    """Units whose weights are zero can go: the pruned model is the source, but for rounding."""
    from safetensors.torch import load_file, save_file

    source = make_toy(model_type, tmp_path / "source", seed=3)
    checkpoint = open_checkpoint(source)
    wanted = Target({"ffn": 56} if "ffn" in checkpoint.shape else {"expert_ffn": 16})
    target = target_shape(checkpoint, wanted)
    scores = {  # of what is cut, and of what follows it
        axis: values
        for axis, values in random_scores(checkpoint.shape).values.items()
        if target[axis] != checkpoint.shape[axis]
    }
    dead = {a: np.argsort(np.argsort(v, axis=-1), axis=-1) < v.shape[-1] - target[a] for a, v in scores.items()}
    tensors = load_file(source / "model.safetensors")
    for name, found in match(checkpoint.family, tensors, checkpoint.shape.kinds)[0].items():
        fused = found.expert is None and list(map(axes_of, found.weight.dims[:1])) == [("expert",)]
        for expert in range(checkpoint.shape["expert"]) if fused else [found.expert]:
            part = tensors[name][expert] if fused else tensors[name]
            for place, dim in enumerate(found.weight.dims[1:] if fused else found.weight.dims):
                if len(dim) == len(dim[0]) == 1 and (of := dead.get(str(dim[0][0]))) is not None:
                    row = of[found.layer] if expert is None else of[found.layer, expert]
                    part.movedim(place, 0)[torch.as_tensor(row)] = 0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    plan = make_plan(checkpoint.shape, target, wanted, Scores(scores))
    write_pruned(open_checkpoint(source), plan, tmp_path / "small")
    assert difference(logits_of(tmp_path / "small"), logits_of(source)) < 1e-5
