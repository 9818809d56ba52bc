"""The line grammar: what each dimension of a weight means, and which positions survive when axes are cut.

A line is a weight's name on disk, then one entry per tensor dimension, then an optional mark:

    model.layers.{layer}.self_attn.q_proj.weight   (head head_dim) hidden
    model.layers.{layer}.mlp.gate_up_proj.weight   (ffn + ffn) hidden
    model.layers.{layer}.self_attn.q_proj.bias     (head head_dim)            ?attention_bias
    lm_head.weight                                 vocab hidden               ?!tie_word_embeddings
    embed_out.weight                               vocab hidden               ?!tie_word_embeddings @disk
    lm_head.weight                                 vocab hidden               ?!tie_word_embeddings @memory
    model.layers.{layer}.self_attn.rotary_emb.inv_freq -

A dimension is an axis, an integer, a row-major product `(head 3 head_dim)` or a concatenation `(ffn + ffn)` of
products. `{layer}` and `{expert}` in the name are axes too. `?` marks a weight that may be absent, `?key` one that is
there exactly when the config says `key`, `?!key` when it does not. `@layout` marks alternatives: a checkpoint holds the
lines of one layout only, the first one named being the usual. `-` marks known junk that is not written out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

# Axes whose units are chosen anew inside each layer (or each expert of a layer): kept indices have these leading dims.
SCOPE: dict[str, tuple[str, ...]] = {
    "ffn": ("layer",),
    "shared_ffn": ("layer",),
    "head": ("layer",),
    "kv": ("layer",),
    "expert": ("layer",),
    "expert_ffn": ("layer", "expert"),
}
AXES = ("vocab", "hidden", "layer", "head", "kv", "head_dim", "ffn", "shared_ffn", "expert", "expert_ffn")

Product = tuple[str | int, ...]
Dim = tuple[Product, ...]  # a concatenation of row-major products; almost always just one

_TOKEN = re.compile(r"\([^()]*\)|[^\s()]+")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Weight:
    """One line of a family's table. `dims` is empty for junk.

    `when` names the config key that decides presence, `layout` the storage layout that the line belongs to (None: all).
    """

    name: str
    dims: tuple[Dim, ...]
    optional: bool = False
    when: str | None = None
    junk: bool = False
    layout: str | None = None

    @property
    def name_axes(self) -> tuple[str, ...]:
        """The axes that stand in the name, in order: ("layer", "expert") for an expert's weight."""
        return tuple(_PLACEHOLDER.findall(self.name))

    def format(self, **index: int) -> str:
        return self.name.format(**index)


def parse_line(line: str) -> Weight:
    """Parse one table line strictly; a malformed line is a programming error of the table and raises ValueError."""
    name, *entries = _tokens(line)
    for axis in _PLACEHOLDER.findall(name):
        if axis not in ("layer", "expert"):
            raise ValueError(f"{line!r}: {{{axis}}} cannot stand in a name")
    if entries == ["-"]:
        return Weight(name, (), optional=True, junk=True)
    marks = {entry[0]: entry[1:] for entry in entries if entry[0] in "?@"}
    dims = [entry for entry in entries if entry[0] not in "?@"]
    if entries != [*dims, *(mark + word for mark, word in marks.items())] or marks.get("@") == "":
        raise ValueError(f"{line!r}: marks stand once, behind the dimensions")
    if not dims:
        raise ValueError(f"{line!r}: no dimensions")
    return Weight(
        name,
        tuple(_parse_dim(entry, line) for entry in dims),
        optional="?" in marks,
        when=marks.get("?") or None,
        layout=marks.get("@"),
    )


def parse_table(text: str) -> tuple[Weight, ...]:
    """Parse a whole table, one line per weight; blank lines and `#` comments are passed over."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    weights = tuple(parse_line(line) for line in lines if line)
    names = [w.name for w in weights]
    if len(set(names)) != len(names):
        raise ValueError(f"a name stands twice in the table: {sorted({n for n in names if names.count(n) > 1})}")
    return weights


def _tokens(line: str) -> list[str]:
    tokens = _TOKEN.findall(line)
    if "".join(tokens).replace(" ", "") != line.replace(" ", ""):
        raise ValueError(f"{line!r}: unbalanced parentheses")
    return tokens


def _parse_dim(entry: str, line: str) -> Dim:
    if not entry.startswith("("):
        return (_parse_product([entry], line),)
    return tuple(_parse_product(part.split(), line) for part in entry[1:-1].split("+"))


def _parse_product(words: list[str], line: str) -> Product:
    if not words:
        raise ValueError(f"{line!r}: an empty term")
    product: list[str | int] = []
    for word in words:
        if not word.isdigit() and word not in AXES:
            raise ValueError(f"{line!r}: unknown axis {word!r}, known: {', '.join(AXES)}")
        product.append(int(word) if word.isdigit() else word)
    return tuple(product)


def axes_of(dim: Dim) -> tuple[str, ...]:
    """The named axes of a dimension, each once, in order."""
    return tuple(dict.fromkeys(factor for product in dim for factor in product if isinstance(factor, str)))


def is_embedding(weight: Weight) -> bool:
    """Whether the line is the input embedding: vocabulary by hidden, and always there."""
    return _vocab_by_hidden(weight) and not weight.optional


def is_head(weight: Weight) -> bool:
    """Whether the line is the output head: vocabulary by hidden, and absent where it is tied to the embedding."""
    return _vocab_by_hidden(weight) and weight.optional


def _vocab_by_hidden(weight: Weight) -> bool:
    return [axes_of(dim) for dim in weight.dims] == [("vocab",), ("hidden",)]


def size(dim: Dim, sizes: Mapping[str, int]) -> int:
    """Length of a dimension when its axes have these sizes."""
    return sum(prod(f if isinstance(f, int) else sizes[f] for f in product) for product in dim)


def positions(dim: Dim, sizes: Mapping[str, int], kept: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Positions that survive along a dimension, in the order of the kept indices: int64 (new length,).

    `sizes` are the source's; `kept` maps an axis to its surviving indices, already resolved to the layer (and expert)
    at hand. Returns None when no axis of the dimension is cut, so that callers can copy instead of gather.
    """
    if not any(axis in kept for axis in axes_of(dim)):
        return None
    parts, offset = [], 0
    for product in dim:
        lengths = [f if isinstance(f, int) else sizes[f] for f in product]
        flat = np.zeros(1, dtype=np.int64)
        for factor, length in zip(product, lengths):
            index = kept[factor] if factor in kept else np.arange(length)  # type: ignore[index]
            flat = (flat[:, None] * length + np.asarray(index, dtype=np.int64)[None, :]).reshape(-1)
        parts.append(flat + offset)
        offset += prod(lengths)
    return np.concatenate(parts)
