"""Gemma 4: two sizes of heads under the same names, the last layer of full attention, what is refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.checkpoint.reader import load_config, open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.prune.request import PruneRequest
from minitron_cli.prune.resolve import resolve
from minitron_cli.spec.axes import parse_table
from minitron_cli.spec.shape import kv_bytes_per_token, shape_of
from tests.prune.cutting import load, logits_of, prune_to
from tests.toys import toy_values

Toy = Callable[..., Path]


def test_sizes_as_published_and_as_transformers_saves_them(toy: Toy, tmp_path: Path) -> None:
    shutil.copytree(toy("gemma4_text"), tmp_path / "published")
    saved = json.loads((tmp_path / "published" / "config.json").read_text())
    assert "global_head_dim" not in saved, "transformers writes a table of layers"
    values = load_config(toy("gemma4_text"))
    assert (values["global_head_dim"], values["num_global_key_value_heads"]) == (16, 3)
    (tmp_path / "published" / "config.json").write_text(json.dumps(values))
    assert (logits_of(tmp_path / "published") == logits_of(toy("gemma4_text"))).all()
    shape = open_checkpoint(tmp_path / "published").shape
    assert kv_bytes_per_token(shape) == 2 * (1 * 2 * 10 + 2 * 3 * 16) * 2  # one sliding layer, two of full attention


@pytest.mark.parametrize(
    "variant",
    [
        {"hidden_size_per_layer_input": 8},
        {"num_kv_shared_layers": 1},
        {"enable_moe_block": True},
        {"attention_k_eq_v": False},
        {"per_layer_config": {"1": {"head_dim": 16}, "2": {"head_dim": 20}}},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_variants_that_the_table_does_not_describe(variant: dict[str, Any], toy: Toy, tmp_path: Path) -> None:
    shutil.copytree(toy("gemma4_text"), tmp_path / "variant")
    values = {**load_config(toy("gemma4_text")), **variant}
    (tmp_path / "variant" / "config.json").write_text(json.dumps(values))
    with pytest.raises(MinitronError, match=f"gemma4 variant that cannot be pruned yet: {next(iter(variant))} is"):
        open_checkpoint(tmp_path / "variant")


def test_the_last_layer_is_of_full_attention(toy: Toy, tmp_path: Path) -> None:
    source = toy("gemma4_text", layer_types=["full_attention", "sliding_attention", "full_attention"])
    with pytest.raises(MinitronError, match="the last layer that stays would not be of full attention"):
        resolve(PruneRequest(model=str(source), drop_layers="2"))
    assert resolve(PruneRequest(model=str(source), drop_layers="0")).shape["layer"] == 2
    prune_to(source, tmp_path / "small", {"hidden": 36, "ffn": 56})
    assert [p.shape[0] for n, p in load(tmp_path / "small").named_parameters() if "q_norm" in n] == [16, 10, 16]


@pytest.mark.parametrize(("axis", "size"), [("head", 4), ("kv", 1)])
def test_heads_stay_and_the_reason_is_said(axis: str, size: int, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="layers of full attention have heads of another size"):
        prune_to(toy("gemma4_text"), tmp_path / "small", {axis: size})


def test_layer_types_that_a_config_leaves_out() -> None:
    values = {**toy_values("gemma4_text"), "layer_types": None, "num_hidden_layers": 8}
    kinds = [kind for (kind,) in shape_of(family_of("gemma4_text"), values).kinds]
    assert kinds == ["sliding"] * 5 + ["full", "sliding", "full"]


def test_a_name_has_one_line_for_each_kind_and_no_more() -> None:
    line = "model.layers.{layer}.q_proj.weight"
    assert len(parse_table(f"[one]\n{line} head hidden\n[two]\n{line} global_head hidden")) == 2
    for table in (f"{line} head hidden\n[one]\n{line} head hidden", f"[one]\n{line} head hidden\n{line} kv hidden"):
        with pytest.raises(ValueError, match="twice in the table"):
            parse_table(table)
