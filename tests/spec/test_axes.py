"""The line grammar: strict parsing, and sizes and positions against numpy's own reshape and split."""

from math import prod

import numpy as np
import pytest

from minitron_cli.spec.axes import parse_line, parse_table, positions, size

SIZES = {"hidden": 6, "head": 4, "kv": 2, "head_dim": 3, "ffn": 5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.weight", "no dimensions"),
        ("a.weight ?", "no dimensions"),
        ("a.weight hiden", "unknown axis 'hiden'"),
        ("a.weight (head head_dim", "unbalanced"),
        ("a.weight head head_dim)", "unbalanced"),
        ("a.weight ()", "an empty term"),
        ("a.weight (ffn +)", "an empty term"),
        ("a.weight ((ffn + ffn) hidden)", "unbalanced"),
        ("a.{head}.weight hidden", "{head} cannot be part of a name"),
        ("a.weight ?flag hidden", "marks come once each, after"),
        ("a.weight hidden ?one ?two", "marks come once each, after"),
        ("a.weight hidden @", "marks come once each, after"),
        ("a.weight - hidden", "unknown axis '-'"),
    ],
)
def test_a_malformed_line_is_refused(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse_line(line)


def test_a_name_is_in_the_table_once() -> None:
    with pytest.raises(ValueError, match="is twice in the table"):
        parse_table("a.weight hidden\nb.weight ffn\na.weight vocab")


def test_marks() -> None:
    line = parse_line("layers.{layer}.experts.{expert}.w.bias (head 3 head_dim) hidden ?!tied @split")
    assert line.name_axes == ("layer", "expert")
    assert (line.optional, line.when, line.layout, line.junk) == (True, "!tied", "split", False)
    assert line.dims == ((("head", 3, "head_dim"),), (("hidden",),))
    assert line.format(layer=2, expert=5) == "layers.2.experts.5.w.bias"
    junk = parse_line("layers.{layer}.inv_freq -")
    assert (junk.junk, junk.optional, junk.dims) == (True, True, ())


DIMS = [
    "hidden",
    "(head head_dim)",
    "(head 3 head_dim)",
    "(3 head head_dim)",
    "(ffn + ffn)",
    "(head head_dim + kv head_dim + kv head_dim)",
    "(kv 2 head_dim + 2 ffn)",
]
KEPT = {
    "hidden": [0, 2, 5],
    "head": [1, 3],
    "kv": [1],
    "ffn": [0, 3, 4],
    "head_dim": [0, 2],
}


def oracle(dim: str, kept: dict[str, list[int]]) -> np.ndarray:
    """Split the dimension at `+`, reshape each term to one axis per factor, and take along every kept axis."""
    terms = [term.split() for term in dim.strip("()").split("+")]
    lengths = [[int(f) if f.isdigit() else SIZES[f] for f in term] for term in terms]
    whole = np.arange(sum(map(prod, lengths)))
    parts = np.split(whole, np.cumsum([prod(n) for n in lengths])[:-1])
    found = []
    for part, term, shape in zip(parts, terms, lengths):
        block = part.reshape(shape)
        for place, factor in enumerate(term):
            if factor in kept:
                block = block.take(kept[factor], axis=place)
        found.append(block.reshape(-1))
    return np.concatenate(found)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("cut", [["hidden"], ["head"], ["kv"], ["ffn"], ["head", "kv"], ["head_dim"], list(KEPT)])
def test_positions_against_reshape(dim: str, cut: list[str]) -> None:
    kept = {axis: KEPT[axis] for axis in cut}
    parsed = parse_line(f"a {dim}").dims[0]
    found = positions(parsed, SIZES, {axis: np.array(index) for axis, index in kept.items()})
    expected = oracle(dim, kept)
    assert size(parsed, SIZES) == len(oracle(dim, {}))
    if found is None:
        assert np.array_equal(expected, np.arange(len(expected))), "a cut axis was overlooked"
    else:
        assert np.array_equal(found, expected)
        assert (np.diff(found) > 0).all()


def test_the_order_of_factors_matters() -> None:
    """The two readings of a fused qkv keep other rows: shapes alone could never tell them apart."""
    one, other = (parse_line(f"a {dim}").dims[0] for dim in ("(head 3 head_dim)", "(3 head head_dim)"))
    kept = {"head": np.array([0])}
    assert size(one, SIZES) == size(other, SIZES)
    assert not np.array_equal(positions(one, SIZES, kept), positions(other, SIZES, kept))
