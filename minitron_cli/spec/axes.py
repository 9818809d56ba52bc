"""The axes of models, and the grammar of table lines: which axes the dimensions of each weight have.

`AXES` holds every fact about an axis; the collections after it are views of that table. A line is a weight's name on
disk, then one entry per tensor dimension, then an optional mark:

    model.layers.{layer}.self_attn.q_proj.weight   (head head_dim) hidden
    model.layers.{layer}.mlp.gate_up_proj.weight   (ffn + ffn) hidden
    model.layers.{layer}.self_attn.q_proj.bias     (head head_dim)            ?attention_bias
    lm_head.weight                                 vocab hidden               ?!tie_word_embeddings
    embed_out.weight                               vocab hidden               ?!tie_word_embeddings @disk
    lm_head.weight                                 vocab hidden               ?!tie_word_embeddings @memory
    model.layers.{layer}.self_attn.rotary_emb.inv_freq -

A dimension is an axis, an integer, a row-major product `(head 3 head_dim)` or a concatenation `(ffn + ffn)` of
products; a scalar has none, `[]`. `{layer}` and `{expert}` in the name are axes too. `?` marks a weight that may be
absent, `?key` one that is present exactly when the config says `key`, `?!key` when it does not. `@layout` marks
alternatives: a checkpoint holds the lines of one layout only, the first one named being the usual. `-` marks known junk
that is not written out.

Where layers are of several kinds, `[kind]` begins the lines of those of one kind; lines above the first hold for all.
A name may have a line in each of several kinds: the same weight, of other sizes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np


@dataclass(frozen=True, slots=True)
class Axis:
    """A named direction of the model.

    `letter` is the axis in names of shapes (h3072), `flag` is its option (--hidden); an axis without a flag is
    never cut, or with another (see Family.follows). `key` is the usual config key, where there is one. `scope` names
    the axes inside which its units are chosen, so that arrays of scores and kept indices have those dimensions first.
    `scored` says what ranks the units: their activations where a linear layer reads them ("input"), what the routed
    experts do ("routed"), the influence of whole blocks ("block"), how often text has them ("counted"), or, where no
    text goes through them, how large their weights are ("weights"). `group` is the axis whose units each hold an equal
    number of this axis' units. `multiple` is what sizes should be a multiple of for fast matrix products; 0 where the
    size is not rounded. Without `units` it is a number of the config and no direction of a weight. `masks` says whether
    its units can have learned masks.
    `searched` is the least share of the source's size that a search looks at by itself; 0 where the size stays.
    `spread` says how engines share its units over GPUs (see `engines`): "even", as many on each; "copied", or each on
    several GPUs; "single", or one on all; "padded" or "any", whatever their number. Empty: each GPU has them all.
    """

    name: str
    words: str
    letter: str
    flag: str = ""
    key: str = ""
    scope: tuple[str, ...] = ()
    scored: str = ""
    group: str = ""
    multiple: int = 0
    units: bool = True
    masks: bool = True
    searched: float = 0.0
    spread: str = ""


_L, _E = ("layer",), ("layer", "expert")
AXES: tuple[Axis, ...] = (
    Axis("vocab", "vocabulary", "v", "vocab", "vocab_size", (), "counted", multiple=64, masks=False, spread="padded"),
    Axis("hidden", "hidden channels", "h", "hidden", "hidden_size", scored="input", multiple=64, searched=0.5),
    Axis("layer", "layers", "l", "layers", "num_hidden_layers", scored="block", searched=2 / 3),
    Axis("head", "query heads", "q", "heads", "num_attention_heads", _L, "input", group="kv", spread="even"),
    Axis("kv", "key/value heads", "kv", "kv-heads", "num_key_value_heads", _L, spread="copied"),
    Axis("head_dim", "channels a head", "d", key="head_dim"),
    Axis("ffn", "MLP neurons", "f", "ffn", "intermediate_size", _L, "input", multiple=64, searched=0.5, spread="even"),
    Axis("shared_ffn", "shared-expert neurons", "sf", "shared-ffn", "", _L, "input", multiple=64, spread="even"),
    Axis("expert", "experts", "e", "experts", scope=_L, scored="routed", spread="any"),
    Axis("expert_ffn", "expert neurons", "ef", "expert-ffn", "", _E, "routed", multiple=8, searched=0.5, spread="even"),
    Axis("expert_active", "experts a token is routed to", "a", "experts-per-token", units=False),
    Axis("value_head", "linear-attention value heads", "vh", "value-heads", "", _L, "input", "key_head", masks=False),
    Axis("key_head", "linear-attention key heads", "kh", "key-heads", scope=_L, masks=False, spread="even"),
    Axis("mamba_head", "Mamba heads", "mh", "mamba-heads", "", _L, "input", "mamba_group", masks=False, spread="even"),
    Axis("mamba_dim", "channels of a Mamba head", "md", "mamba-head-dim", "", _L, "input", masks=False),
    Axis("projector", "neurons between vision and text", "p", scored="weights", masks=False),
    Axis("expert_group", "groups that experts are routed by", "eg", units=False),
    # Sizes that are never cut.
    Axis("conv", "taps of the convolution", "c"),
    Axis("key_dim", "channels of a linear-attention key", "kd"),
    Axis("value_dim", "channels of a linear-attention value", "vd"),
    Axis("q_rank", "rank of the queries", "qr"),
    Axis("kv_rank", "rank of keys and values", "kvr"),
    Axis("rope_dim", "rotated channels, shared by all heads", "rd"),
    Axis("qk_dim", "channels of a query or key", "qd"),
    Axis("kv_dim", "channels of a head's key and value", "kvd"),
    Axis("v_dim", "channels of a value", "d"),
    Axis("global_head", "query heads of full-attention layers", "gq", spread="even"),
    Axis("global_kv", "key/value heads of full-attention layers", "gkv", spread="copied"),
    Axis("global_dim", "channels a head of full-attention layers", "gd"),
    Axis("mamba_group", "groups of Mamba heads", "mg", spread="single"),
    Axis("mamba_state", "states of a Mamba channel", "ms"),
)
SCOPE = {axis.name: axis.scope for axis in AXES if axis.scope}
WORDS = {axis.name: axis.words for axis in AXES}
FLAG_OF_AXIS = {axis.name: axis.flag for axis in AXES if axis.flag}  # the axes that can be cut
AXIS_OF_FLAG = {flag: name for name, flag in FLAG_OF_AXIS.items()}
CONFIG_KEYS = {axis.name: axis.key for axis in AXES if axis.key}
MASKED_AXES = tuple(axis for axis in AXES if axis.flag and axis.units and axis.masks)
NEURON_AXES = tuple(axis for axis in AXES if axis.scope and axis.multiple)  # the widths of MLPs and of experts
COUNTED_AXES = tuple(axis.name for axis in AXES if axis.scored == "counted")
SCORED_AXES = tuple(axis.name for axis in AXES if axis.scored and axis.flag and axis.name not in COUNTED_AXES)
FOLLOWING_AXES = tuple(axis.name for axis in AXES if axis.scored and not axis.flag)  # cut with another, ranked apart
SEARCHED = {axis.name: axis.searched for axis in AXES if axis.searched}
GROUPS = tuple((axis.name, axis.group) for axis in AXES if axis.group)

Product = tuple[str | int, ...]
Dim = tuple[Product, ...]  # a concatenation of row-major products; almost always just one

_NAMES = tuple(axis.name for axis in AXES if axis.units)
_TOKEN = re.compile(r"\([^()]*\)|[^\s()]+")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SECTION = re.compile(r"\[(\w+)\]")


@dataclass(frozen=True, slots=True)
class Weight:
    """One line of a family's table. `dims` is empty for junk.

    `when` names the config key that decides presence, `layout` the storage layout that the line belongs to (None: all),
    `kind` the kind of layer (None: every).
    """

    name: str
    dims: tuple[Dim, ...]
    optional: bool = False
    when: str | None = None
    junk: bool = False
    layout: str | None = None
    kind: str | None = None

    @property
    def name_axes(self) -> tuple[str, ...]:
        """The axes in the name, in order: ("layer", "expert") for an expert's weight."""
        return tuple(_PLACEHOLDER.findall(self.name))

    @property
    def axes(self) -> frozenset[str]:
        """The axes of its dimensions; those in its name are not among them."""
        return frozenset(axis for dim in self.dims for axis in axes_of(dim))

    def format(self, **index: int) -> str:
        return self.name.format(**index)


def parse_line(line: str) -> Weight:
    """Parse one table line strictly; a malformed line is a programming error of the table and raises ValueError."""
    name, *entries = _tokens(line)
    for axis in _PLACEHOLDER.findall(name):
        if axis not in ("layer", "expert"):
            raise ValueError(f"{line!r}: {{{axis}}} cannot be part of a name")
    if entries == ["-"]:
        return Weight(name, (), optional=True, junk=True)
    marks = {entry[0]: entry[1:] for entry in entries if entry[0] in "?@"}
    dims = [entry for entry in entries if entry[0] not in "?@"]
    if entries != [*dims, *(mark + word for mark, word in marks.items())] or marks.get("@") == "":
        raise ValueError(f"{line!r}: marks come once each, after the dimensions")
    if dims == ["[]"]:
        dims = []
    elif not dims:
        raise ValueError(f"{line!r}: no dimensions")
    return Weight(
        name,
        tuple(_parse_dim(entry, line) for entry in dims),
        optional="?" in marks,
        when=marks.get("?") or None,
        layout=marks.get("@"),
    )


def parse_table(text: str) -> tuple[Weight, ...]:
    """Parse a whole table, one line per weight; blank lines and `#` comments are skipped."""
    found: list[Weight] = []
    kind = None
    for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
        if section := _SECTION.fullmatch(line):
            kind = section[1]
        else:
            found.append(replace(parse_line(line), kind=kind))
    of_name: dict[str, list[str | None]] = {}
    for weight in found:
        of_name.setdefault(weight.name, []).append(weight.kind)
    if twice := sorted(n for n, kinds in of_name.items() if len(kinds) > 1 and len({None, *kinds}) <= len(kinds)):
        raise ValueError(f"a name is twice in the table: {twice}")
    return tuple(found)


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
        if not word.isdigit() and word not in _NAMES:
            raise ValueError(f"{line!r}: unknown axis {word!r}, known: {', '.join(_NAMES)}")
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


def is_norm(weight: Weight) -> bool:
    """Whether the line is a norm's weight over the residual stream: a vector of hidden channels."""
    return weight.dims == ((("hidden",),),) and weight.name.endswith(".weight")


def is_matrix(weight: Weight) -> bool:
    """Whether the line multiplies its input; stacked biases of experts have two dimensions but do not."""
    return not weight.junk and len(weight.dims) > 1 and not weight.name.endswith("bias")


def reading_dim(weight: Weight) -> int | None:
    """The dimension along which a matrix meets its input, None for what multiplies nothing.

    It is the last, except for stacked experts that are stored transposed, (input, output): theirs is `expert_ffn` where
    that is a dimension by itself, else `hidden`, for the outputs of gate and up projections are fused.
    """
    if not is_matrix(weight):
        return None
    stacked = len(weight.dims) > 2 and axes_of(weight.dims[0]) == ("expert",)
    alone = ((("expert_ffn",),), (("hidden",),)) if stacked else ()
    return next((weight.dims.index(dim) for dim in alone if dim in weight.dims), len(weight.dims) - 1)


def reads(weight: Weight) -> tuple[str, ...]:
    """The axes of a matrix's input; empty for what is not a matrix."""
    dim = reading_dim(weight)
    return () if dim is None else axes_of(weight.dims[dim])


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
