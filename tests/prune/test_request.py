"""A request resolved against a checkpoint or a config alone, and carried out: measured first where that is needed."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.architecture import architecture_of, stored_weights
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import write_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.errors import MinitronError
from minitron_cli.prune.acceptance import check_accepted
from minitron_cli.prune.execute import prune
from minitron_cli.prune.request import Measurement, PruneRequest, request_from_options
from minitron_cli.prune.resolve import resolve
from minitron_cli.spec.counts import parse_count
from minitron_cli.spec.scores import Scores
from tests.prune.cutting import random_scores
from tests.toys import TOY_CONFIGS

Toy = Callable[..., Path]


def never(measurement: Measurement) -> None:
    raise AssertionError("nothing was to be measured")


def test_a_config_alone_gives_the_same_figures(toy: Toy) -> None:
    source = open_checkpoint(toy("llama"))
    request = request_from_options(str(toy("llama")), {"hidden": 36, "kv-heads": "1", "heads": 3, "multiple-of": 4})
    opened, alone = resolve(request), resolve(request, architecture_of(source.config))
    assert opened.shape == alone.shape
    assert (alone.shape["hidden"], alone.shape["kv"], alone.shape["head"]) == (36, 1, 3)
    assert opened.facts.parameters == alone.facts.parameters
    assert opened.facts.bytes == alone.facts.bytes
    assert opened.facts.parameters[0] == sum(np.prod(t.shape, dtype=int) for t in source.tensors.values())
    assert opened.missing == "no scores for hidden, head: pruning needs to know what matters"
    assert alone.missing == ""


def test_a_chain_of_configs(toy: Toy) -> None:
    """A recipe's second step is resolved against what the first will make."""
    config = json.loads((toy("qwen2_moe") / "config.json").read_text())
    first = resolve(PruneRequest(model="first", shared_ffn=32, experts=3), architecture_of(config)).result
    second = resolve(PruneRequest(model="second", experts_per_token=1, layers=2), first)
    assert second.shape["shared_ffn"] == 32
    assert second.result.config["num_experts_per_tok"] == 1
    assert sum(stored_weights(first).values()) == 4 * len(stored_weights(first))
    with pytest.raises(MinitronError, match="--experts 4 is larger than the source's 3"):
        resolve(PruneRequest(model="third", experts=4), first)


def test_heads_without_groups_take_their_keys_and_values_along(toy: Toy) -> None:
    config = json.loads((toy("llama") / "config.json").read_text())
    ungrouped = architecture_of({**config, "num_key_value_heads": 6})
    assert resolve(PruneRequest(model="x", heads=4), ungrouped).shape["kv"] == 4


def test_a_budget_is_met_without_scores(toy: Toy) -> None:
    model = architecture_of(json.loads((toy("mistral") / "config.json").read_text()))
    total = resolve(PruneRequest(model="x", ffn=80), model).facts.parameters[0]
    found = resolve(request_from_options("x", {"params": f"{total * 0.7 / 1e3:.3f}K"}), model)
    assert abs(found.facts.parameters[1] / total - 0.7) < 0.02 * 0.7


def test_scores_are_measured_once_and_only_when_the_cut_is_made(toy: Toy, tmp_path: Path) -> None:
    model, measured, text = toy("llama"), [], tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}')
    request = PruneRequest(model=str(model), ffn=56, data=(str(text),), samples=7, output=tmp_path / "small")
    resolved = resolve(request)
    assert resolved.measurement == Measurement(
        str(model), (str(text),), tmp_path / "small.scores.safetensors", 7, None, second_moments=False
    )

    def measure(wanted: Measurement) -> None:
        measured.append(wanted)
        provenance = {"model": {"name": "toy", "digest": source_digest(model)}}
        write_scores(wanted.output, Scores(random_scores(open_checkpoint(model).shape).values, provenance))

    result = prune(request, measure)
    assert measured == [resolved.measurement]
    assert result.facts == resolved.facts
    assert open_checkpoint(tmp_path / "small").shape == resolved.shape


def test_what_needs_no_scores_measures_none(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    data = (str(tmp_path / "text.txt"),)
    request = PruneRequest(model=str(toy("llama")), drop_layers="1", data=data, output=tmp_path / "small")
    assert prune(request, never).plan.kept["layer"].tolist() == [0, 2]
    with pytest.raises(MinitronError, match="no scores for ffn"):
        prune(PruneRequest(model=str(toy("llama")), ffn=56, output=tmp_path / "other"), never)
    assert not (tmp_path / "other").exists()


def test_the_nearest_sizes_that_transformers_takes(toy: Toy) -> None:
    """Llama wants hidden to be a multiple of its heads: 441 and 450 beside 448, for the 9 heads of SmolLM2-135M."""
    config = json.loads((toy("llama") / "config.json").read_text())
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    model = architecture_of({**config, **sizes})
    with pytest.raises(MinitronError, match="transformers rejects the target's config") as caught:
        check_accepted(model, model.shape.with_(hidden=448))
    assert caught.value.hint == "nearest sizes that work: --hidden 441 or 450"
    check_accepted(model, model.shape.with_(hidden=441))


def test_a_bad_config_of_the_source_is_not_blamed_on_the_target(toy: Toy) -> None:
    config = json.loads((toy("llama") / "config.json").read_text())
    model = architecture_of({**config, "hidden_size": 49, "head_dim": 8})
    with pytest.raises(MinitronError, match="transformers rejects the source's own config"):
        check_accepted(model, model.shape.with_(hidden=37))


@pytest.mark.parametrize(("dtype", "multiple"), [("float32", 4), ("bfloat16", 8)])
@pytest.mark.parametrize("flag", ["expert_ffn", "hidden"])
def test_experts_whose_first_forward_pass_would_fail_are_refused(
    flag: str, dtype: str, multiple: int, toy: Toy
) -> None:
    """The oracle is torch: what is refused fails there, and the sizes of the hint run."""
    from tests.toys import toy_ids, toy_model

    key = {"expert_ffn": "moe_intermediate_size", "hidden": "hidden_size"}[flag]
    config = json.loads((toy("qwen3_moe") / "config.json").read_text())
    source = architecture_of({**config, "moe_intermediate_size": 40, "dtype": dtype})
    with pytest.raises(MinitronError, match=f"runs on multiples of {multiple} only") as caught:
        resolve(PruneRequest(model="x", **{flag: 22}), source)
    sizes = [22, *map(int, caught.value.hint.split(f"--{flag.replace('_', '-')} ")[1].split(" or "))]
    assert sizes == [22, 22 // multiple * multiple, -(-22 // multiple) * multiple]
    for size in sizes:
        model = toy_model("qwen3_moe", **{key: size}).to(getattr(torch, dtype))
        with torch.no_grad(), nullcontext() if size != 22 else pytest.raises(RuntimeError, match="16 bytes"):
            model(toy_ids(2, 9))


@pytest.mark.parametrize(
    ("text", "count"), [("4.5B", 4_500_000_000), ("1_000", 1000), ("2e9", 2 * 10**9), ("0.5K", 500), (7, 7)]
)
def test_counts(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["4.5", "0.0001K", "nan", "inf", "-1", "1e99", "", "K", "4.5Q", "1e-999999"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(MinitronError, match=r"is not a (count|whole number)"):
        parse_count(text)


@pytest.mark.parametrize(
    ("model_type", "config", "sizes", "words"),
    [
        ("qwen3_moe", {}, {"experts_per_token": 1}, "do not add up to 1"),
        ("qwen3_moe", {"norm_topk_prob": True}, {"experts_per_token": 1}, None),
        ("mixtral", {}, {"experts_per_token": 1}, None),
        ("mixtral", {"num_local_experts": 16}, {"experts": 12}, "not a multiple of 8"),
        ("mixtral", {"num_local_experts": 16}, {"experts": 8}, None),
        ("mixtral", {}, {"experts": 3, "compensate": "least-squares"}, "not compensated for"),
    ],
)
def test_what_a_cut_of_experts_costs_is_said(
    model_type: str, config: dict[str, object], sizes: dict[str, object], words: str | None
) -> None:
    source = architecture_of({"model_type": model_type, **TOY_CONFIGS[model_type], **config})
    warnings = resolve(PruneRequest(model="m", **sizes), source).facts.warnings
    assert [w for w in warnings if "expert" in w] == [] if words is None else any(words in w for w in warnings)


def test_layers_that_calibration_reached_too_few_experts_of_are_named(toy: Toy, tmp_path: Path) -> None:
    scores = random_scores(open_checkpoint(toy("mixtral")).shape)
    write_scores(tmp_path / "s", Scores(scores.values, {"unrouted": {"1": [0, 2, 4], "2": [1]}}))
    facts = resolve(PruneRequest(model=str(toy("mixtral")), experts=3, scores=tmp_path / "s")).facts
    assert [w.partition(":")[0] for w in facts.warnings if "routed to only 2" in w] == ["layer 1"]


@pytest.mark.parametrize("sizes", [{"vocab": 999}, {"vocab": 64, "ffn": 999}, {"vocab-coverage": "99%", "heads": 7}])
def test_a_corpus_is_not_counted_for_a_cut_that_is_refused(sizes: dict[str, object], toy: Toy) -> None:
    request = request_from_options(str(toy("llama")), {**sizes, "data": ("corpus.jsonl",)})
    with pytest.raises(MinitronError, match="is larger than the source's"):
        resolve(request, vocabulary=lambda *_: pytest.fail("counted"))
