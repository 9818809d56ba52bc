"""The README's table of families is that of the tables, and its claims hold where the code refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from minitron_cli.checkpoint.describe import describe
from minitron_cli.checkpoint.moments_file import Moments
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.families import FAMILIES, family_of
from minitron_cli.families.features import compensated, cuttable, markdown, rotates, wrappers_markdown
from minitron_cli.prune.compensate import Compensation
from minitron_cli.prune.directions import check_rotation
from minitron_cli.prune.gather_plan import cuts
from minitron_cli.spec.axes import FLAG_OF_AXIS
from minitron_cli.spec.family import Family
from tests.prune.cutting import ALL_CASES, plan_for, sizes_for
from tests.toys import TOY_CONFIGS

README = Path(__file__).resolve().parents[2] / "README.md"
FLAGS = {
    "hidden": "--hidden",
    "head": "--heads",
    "kv": "--kv-heads",
    "layer": "--layers",
    "key_head": "--key-heads",
    "mamba_head": "--mamba-heads",
}


def test_the_readme_has_the_table_of_the_tables() -> None:
    assert markdown() in README.read_text(), "python -m minitron_cli.families.features"
    assert wrappers_markdown() in README.read_text(), "python -m minitron_cli.families.features"


@pytest.mark.parametrize("axis", FLAGS)
def test_what_the_table_says_can_be_cut_is_cut_by_the_battery(axis: str) -> None:
    says = {t for family in FAMILIES for t in family.model_types if FLAGS[axis] in cuttable(family)}
    assert {model_type for model_type, cut in ALL_CASES if cut == axis} <= says


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_cannot_be_rotated_is_refused(family: Family) -> None:
    try:
        check_rotation(family, {})
    except MinitronError:
        assert rotates(family)
    else:
        assert rotates(family) is None


class AnyInput:
    """In the place of moments that were measured: every input has some."""

    def of(self, name: str, expert: int | None) -> object:
        return self


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
def test_what_compensation_refits_after_is_what_the_table_says(model_type: str, toy: Callable[..., Path]) -> None:
    """Every cut of the battery: some matrix is refitted after it, or the table does not name it."""
    source = open_checkpoint(toy(model_type))
    by = Compensation(cast(Moments, AnyInput()))
    for cut in (cut for name, cut in ALL_CASES if name == model_type):
        sizes = sizes_for(model_type, cut)
        refitted = any(p.change for one in cuts(source, plan_for(source, sizes), by.refit_of) for p in one.pieces)
        assert refitted == bool({f"--{FLAG_OF_AXIS[axis]}" for axis in sizes} & set(compensated(source.family))), cut


def test_inspect_counts_the_layers_of_each_kind_and_says_what_does_not_work(toy: Callable[..., Path]) -> None:
    facts = describe(open_checkpoint(toy("lfm2")), 0)
    assert facts["layers"] == {"attention": 1, "conv": 2}
    assert [limit.split(":")[0] for limit in facts["limits"]] == ["prune --rotate", "shear --layers"]
    assert describe(open_checkpoint(toy("llama")), 0)["limits"] == []
    limits = describe(open_checkpoint(toy("bamba")), 0)["limits"]
    assert any("must stay a multiple of hidden channels (mamba_expand" in limit for limit in limits)


@pytest.mark.parametrize("axis", ["value_head", "key_head"])
def test_qwen3_next_says_why_its_value_heads_stay(axis: str) -> None:
    assert "side by side" in family_of("qwen3_next").refuses[axis]
