"""The way from source to target in equal steps, each of them valid."""

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.prune.iterations import waypoints
from minitron_cli.spec.shape import Shape, check_target

LLAMA = Shape({"vocab": 97, "hidden": 64, "layer": 6, "head": 8, "kv": 4, "head_dim": 8, "ffn": 172})


def test_the_papers_schedule() -> None:
    """Dims fall linearly: d_s - i (d_s - d_t) / T."""
    target = LLAMA.with_(hidden=32, ffn=132, layer=2)
    found = waypoints(LLAMA, target, 4)
    assert [shape["hidden"] for shape in found] == [56, 48, 40, 32]
    assert [shape["ffn"] for shape in found] == [162, 152, 142, 132]
    assert [shape["layer"] for shape in found] == [5, 4, 3, 2]
    assert waypoints(LLAMA, target, 1) == [target]


@pytest.mark.parametrize(
    "sizes", [{"head": 4}, {"head": 4, "kv": 2}, {"hidden": 48, "head": 4, "kv": 4}, {"kv": 2, "head": 2}]
)
@pytest.mark.parametrize("iterations", [2, 3, 5])
def test_every_step_can_be_cut_from_the_one_before(sizes: dict[str, int], iterations: int) -> None:
    before = LLAMA
    for shape in waypoints(LLAMA, LLAMA.with_(**sizes), iterations):
        check_target(family_of("llama"), before, shape)
        assert shape["hidden"] % shape["head"] == 0
        before = shape
    assert before == LLAMA.with_(**sizes)


def test_no_iteration_is_none() -> None:
    with pytest.raises(MinitronError, match="at least 1"):
        waypoints(LLAMA, LLAMA, 0)
