"""Shapes: sizes per axis, and what follows from them without a single weight: parameters, bytes of caches, FLOPs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from minitron_cli.errors import MinitronError
from minitron_cli.spec.axes import AXES, FLAG_OF_AXIS, GROUPS, NEURON_AXES, WORDS, Weight, axes_of, size
from minitron_cli.spec.family import Family


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes per axis, e.g. {"layer": 32, "hidden": 4096, "ffn": 14336, "head": 32, "kv": 8, "head_dim": 128, ...}.

    Mixtures of experts carry `expert_active`, the experts a token is routed to, beside the axes of their table.
    `groups` and `follows` are the family's (see Family). Where layers are of several kinds, `kinds` holds those of each
    layer and `kinds_with` the kinds that have an axis, for every axis that not all layers have.
    """

    sizes: Mapping[str, int]
    groups: tuple[tuple[str, str], ...] = GROUPS
    kinds: tuple[tuple[str, ...], ...] = ()
    kinds_with: Mapping[str, frozenset[str]] = field(default_factory=dict)
    follows: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, axis: str) -> int:
        return self.sizes[axis]

    def __contains__(self, axis: object) -> bool:
        return axis in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def get(self, axis: str, default: int = 0) -> int:
        return self.sizes.get(axis, default)

    def with_(self, **sizes: int) -> "Shape":
        unknown = [axis for axis in sizes if axis not in self.sizes]
        assert not unknown, f"no such axis: {unknown}"
        for axis, other in self.follows:
            if axis in self and other in sizes and axis not in sizes:
                sizes[axis] = sizes[other] * self[axis] // self[other]
        changed = replace(self, sizes={**self.sizes, **sizes})
        depth = changed.get("layer")
        if not self.kinds or depth == len(self.kinds):
            return changed
        # Which layers stay is not known before `of_layers`: until then they are spread over the depth.
        spread = tuple(self.kinds[i * len(self.kinds) // depth] for i in range(depth)) if depth > 0 else ()
        return replace(changed, kinds=spread)

    def with_alone(self, **sizes: int) -> "Shape":
        """Like `with_`, but sizes that follow from others stay as they are."""
        following = {axis: self[axis] for axis, _ in self.follows if axis in self}
        return self.with_(**{**following, **sizes})

    def of_layers(self, layers: Iterable[int], source: "Shape") -> "Shape":
        """This shape, its layers being those of `source`."""
        if not source.kinds:
            return self
        kinds = tuple(source.kinds[i] for i in layers)
        assert self["layer"] == len(kinds)
        return replace(self, kinds=kinds)

    def layers_of_kind(self, kind: str | None) -> tuple[int, ...]:
        """Indices of the layers of a kind (None: every)."""
        if kind is None:
            return tuple(range(self["layer"]))
        return tuple(layer for layer, kinds in enumerate(self.kinds) if kind in kinds)

    def layers_of(self, axis: str) -> tuple[int, ...]:
        """Indices of the layers that have the axis."""
        if axis not in self:
            return ()
        kinds = self.kinds_with.get(axis)
        return tuple(layer for layer in range(self["layer"]) if kinds is None or kinds & set(self.kinds[layer]))

    def groups_of(self) -> tuple[tuple[str, str], ...]:
        """(axis, the axis that groups it) of every grouping whose axes the model has."""
        return tuple(pair for pair in self.groups if all(axis in self for axis in pair))


def shape_of(family: Family, config: Mapping[str, Any]) -> Shape:
    """Read the size of every axis of the family from a config.json dictionary."""
    config = {**family.defaults, **{k: v for k, v in config.items() if v is not None}}
    num_layers = _sizes_in(family, config, ["layer"])[0].get("layer", 0)
    kinds = family.kinds_of_layers(config, num_layers) if num_layers else ()
    kinds_with = family.kinds_with()
    found = {kind for layer in kinds for kind in layer}
    absent = {axis for axis, having in kinds_with.items() if kinds and not having & found}
    if "expert" in absent:
        absent.add("expert_active")
    sizes, missing, wrong = _sizes_in(family, config, [axis for axis in family.config_keys if axis not in absent])
    if missing or wrong:
        problems = [f"lacks {', '.join(map(str, missing))}"] * bool(missing) + wrong
        raise MinitronError(
            f"config.json {'; '.join(problems)}",
            f"a {family.name} config names all of its sizes, as whole numbers; is it complete?",
        )
    if "head" in sizes:
        if "head_dim" in family.axes():
            sizes.setdefault("head_dim", sizes["hidden"] // sizes["head"])
        if "kv" in family.axes() or "kv" in family.config_keys:
            sizes.setdefault("kv", sizes["head"])
        if sizes["head"] % sizes.get("kv", 1):
            raise MinitronError(
                f"config.json has {sizes['head']} heads over {sizes['kv']} KV groups", "is it this model's config?"
            )
    return Shape(sizes, family.groups, kinds, kinds_with, family.follows)


def dense_shape(shape: Shape) -> Shape:
    """The shape of a mixture of one expert in the axes of a dense model, whose layers are all alike."""
    sizes = {axis: size for axis, size in shape.sizes.items() if not axis.startswith("expert")}
    return replace(shape, sizes={**sizes, "ffn": shape["expert_ffn"]}, kinds=(), kinds_with={})


def _sizes_in(
    family: Family, config: Mapping[str, Any], axes: Iterable[str]
) -> tuple[dict[str, int], list[str | None], list[str]]:
    """The sizes of axes, the keys that the config lacks, and in words what is not a size."""
    sizes: dict[str, int] = {}
    missing: list[str | None] = []
    wrong = []
    for axis in axes:
        key = family.key(axis, config)
        if (derived := family.derived(axis, config)) is not None:
            sizes |= {axis: derived} if derived else {}
        elif key is None or key not in config:
            missing += [key] if axis not in ("kv", "head_dim") and not _may_lack(family, axis) else []
        elif type(config[key]) is not int or config[key] < 1:
            wrong.append(f"{key} is {config[key]!r}")
        else:
            sizes[axis] = config[key]
    return sizes, missing, wrong


def _may_lack(family: Family, axis: str) -> bool:
    """Whether every line with the axis is one that a checkpoint may be without."""
    lines = [weight for weight in family.weights if axis in weight.axes]
    return bool(lines) and all(weight.optional for weight in lines)


def computed(family: Family, shape: Shape) -> dict[str, int]:
    """The config values that follow from the sizes of a shape that `check_target` takes."""
    found = {}
    for key in family.computed:
        over, under = family.factors(key)
        if all(axis in shape for axis in (*over, *under)):
            found[key] = prod(shape[axis] for axis in over) // prod(shape[axis] for axis in under)
    return found


def shape_name(shape: Shape, source: Shape | None = None, *, vocab: bool = False) -> str:
    """Name a shape by its sizes: h3072-l24-q24-kv8-f9216; with `source`, by the sizes that differ from it.

    The vocabulary is named where it was cut, and with `vocab`.
    """
    return "-".join(
        f"{axis.letter}{shape[axis.name]}"
        for axis in AXES
        if axis.flag
        and axis.name in shape
        and (vocab or axis.name != "vocab" if source is None else shape[axis.name] != source[axis.name])
    )


def cut_flags(source: Shape, shape: Shape) -> dict[str, int]:
    """The options that cut `source` to `shape`: {"hidden": 3072, "kv-heads": 4}."""
    return {flag: shape[a] for a, flag in FLAG_OF_AXIS.items() if a in source and shape[a] != source[a]}


def copies(weight: Weight, shape: Shape) -> int:
    """How many tensors a line describes: one per layer and expert that its name ranges over."""
    many = {"layer": len(shape.layers_of_kind(weight.kind))} if "layer" in weight.name_axes else {}
    return prod(many.get(axis, shape.get(axis)) for axis in weight.name_axes)


def num_elements(weight: Weight, shape: Shape) -> int:
    """Elements of one tensor of this line."""
    if weight.kind is not None and not shape.layers_of_kind(weight.kind):
        return 0  # no layer of the kind, and perhaps no sizes of its axes
    return prod(size(dim, shape.sizes) for dim in weight.dims)


def num_parameters(weights: Iterable[Weight], shape: Shape, *, embedding: bool = True) -> int:
    """Total parameters of these lines; without `embedding`, the input embedding and the head are left out.

    That is the papers' convention for "non-embedding" (Minitron, arXiv 2407.14679, table 5).
    """
    return sum(num_elements(w, shape) * copies(w, shape) for w in weights if embedding or "vocab" not in w.axes)


def mlp_width(shape: Shape) -> int:
    """MLP neurons that a token passes through in the widest layer: dense ones, its experts' and shared experts'."""
    layers = Counter[int]()
    for axis in NEURON_AXES:
        many = shape.get("expert_active", 1) if "expert" in axis.scope else 1
        layers.update(dict.fromkeys(shape.layers_of(axis.name), shape.get(axis.name) * many))
    return max(layers.values(), default=0)


def is_routed(weight: Weight) -> bool:
    """Whether a token meets only some copies of this weight: an expert's own, or all experts fused in one tensor.

    A router's (expert, hidden) is not: every token meets all of it. The fused biases of experts have two dims as well.
    """
    if "expert" in weight.name_axes or not weight.dims:
        return bool(weight.dims)
    rest = {axis for dim in weight.dims[1:] for axis in axes_of(dim)}
    return axes_of(weight.dims[0]) == ("expert",) and (len(weight.dims) > 2 or "expert_ffn" in rest)


def kv_bytes_per_token(shape: Shape, bytes_per_element: int = 2) -> int:
    """Bytes that one token adds to the KV cache: keys and values of every layer that has them."""
    heads = "kv" if "kv" in shape else "head"
    if "kv_rank" in shape:  # latent attention keeps what keys and values are made of
        return len(shape.layers_of("kv_rank")) * (shape["kv_rank"] + shape["rope_dim"]) * bytes_per_element
    channels = len(shape.layers_of(heads)) * shape.get(heads) * shape.get("head_dim")
    channels += len(shape.layers_of("global_kv")) * shape.get("global_kv") * shape.get("global_dim")
    return 2 * channels * bytes_per_element


def state_bytes(shape: Shape, bytes_per_element: int = 2) -> int:
    """Bytes that a sequence holds at any length: the states of Mamba-2 and of linear attention, and what convolutions
    still need of their last inputs, one fewer than their taps (as vLLM's MambaStateShapeCalculator has it).
    """
    taps, size = shape.get("conv", 1) - 1, shape.get
    held, total = _recurrent(shape), 0
    if held == "mamba_state":
        channels = size("mamba_head") * size("mamba_dim")
        total = channels * size("mamba_state") + (channels + 2 * size("mamba_group") * size("mamba_state")) * taps
    elif held == "value_dim":
        keys, values = size("key_head") * size("key_dim"), size("value_head") * size("value_dim")
        total = values * size("key_dim") + (2 * keys + values) * taps
    elif held == "conv":
        total = size("hidden") * taps
    return len(shape.layers_of(held)) * total * bytes_per_element


def scan_flops_per_token(shape: Shape) -> int:
    """FLOPs of the recurrences themselves, token by token, which no weight counts; those of a chunked form are more.

    Mamba-2, for each channel of a head and each state: h = a h + (dt x) B is 3, its part of y = C h 2; and 3 a channel
    for dt x and y + D x (arXiv 2405.21060). Gated delta rule, for each value channel and key channel: the decay of S is
    1, its parts of S k, S + k d and S q 2 each; and 2 a value channel for d = beta (v - S k) (arXiv 2412.06464).
    """
    held, size, per_layer = _recurrent(shape), shape.get, 0
    if held == "mamba_state":
        per_layer = size("mamba_head") * size("mamba_dim") * (5 * size("mamba_state") + 3)
    elif held == "value_dim":
        per_layer = size("value_head") * size("value_dim") * (7 * size("key_dim") + 2)
    return len(shape.layers_of(held)) * per_layer


def _recurrent(shape: Shape) -> str:
    """An axis that only layers with a recurrent state have; "" where no layer has one."""
    if "mamba_state" in shape:
        return "mamba_state"
    return "value_dim" if "value_dim" in shape else "conv" if "conv" in shape else ""


def flops_per_token(weights: Iterable[Weight], shape: Shape, context: int = 0) -> int:
    """Forward FLOPs of one token: 2 per weight that multiplies it, causal attention over `context` tokens, recurrences.

    The input embedding is a lookup, the output head a product, tied or not; a token meets `expert_active` experts.
    Attention scores and mixes cost 4 per pair and channel, and a token sees half the context on average.
    """
    linear = 0
    for weight in weights:
        if len(weight.dims) < 2 or "vocab" in weight.axes:
            continue
        share = shape.get("expert_active", 1) / shape.get("expert", 1) if is_routed(weight) else 1
        linear += round(2 * num_elements(weight, shape) * copies(weight, shape) * share)
    head = 2 * shape["vocab"] * shape["hidden"]
    channels = shape["qk_dim"] + shape["v_dim"] if "qk_dim" in shape else 2 * shape.get("head_dim")
    attention = context * len(shape.layers_of("head")) * shape.get("head") * channels
    attention += context * len(shape.layers_of("global_head")) * shape.get("global_head") * 2 * shape.get("global_dim")
    return linear + head + attention + scan_flops_per_token(shape)


def check_target(family: Family, source: Shape, target: Shape) -> None:
    """Raise MinitronError naming every reason why `target` cannot be cut from `source`."""
    problems = []
    for axis in source:
        flag = FLAG_OF_AXIS.get(axis, axis)
        if target[axis] != source[axis] and axis in family.refuses:
            problems.append(f"--{flag}: {family.refuses[axis]}")
        if target[axis] > source[axis]:
            problems.append(f"--{flag} {target[axis]} is larger than the source's {source[axis]}")
        if target[axis] < 1:
            problems.append(f"--{flag} must be at least 1, got {target[axis]}")
    if not problems:
        problems = [*_head_problems(family, source, target), *_expert_problems(source, target)]
        problems += _fraction_problems(family, source, target)
        problems += [
            f"--{FLAG_OF_AXIS[axis]} follows --{FLAG_OF_AXIS[other]}, both being one number of the config"
            for axis, other in source.follows
            if axis in source and target[axis] * source[other] != target[other] * source[axis]
        ]
    if problems:
        sizes = ", ".join(f"--{FLAG_OF_AXIS[a]} {source[a]}" for a in FLAG_OF_AXIS if a in source)
        raise MinitronError("; ".join(problems), f"the source has {sizes}; a target keeps or lowers each")


def can_be_cut(family: Family, source: Shape, target: Shape) -> bool:
    """Whether `check_target` passes."""
    try:
        check_target(family, source, target)
    except MinitronError:
        return False
    return True


def _head_problems(family: Family, source: Shape, target: Shape) -> list[str]:
    problems = [text for axis, group in source.groups_of() if (text := _group_problem(axis, group, source, target))]
    head = target.get("head")
    derived = "head_dim" in source and "head_dim" not in family.config_keys
    if derived and target["hidden"] != head * source["head_dim"]:
        problems.append(
            f"{family.name} derives head_dim from hidden / heads, so --hidden must be heads x {source['head_dim']}: "
            f"for --heads {head} that is --hidden {head * source['head_dim']}, got {target['hidden']}"
        )
    return problems


def _fraction_problems(family: Family, source: Shape, target: Shape) -> list[str]:
    """Config values that would be no whole numbers."""
    problems = []
    for key in family.computed:
        over, under = family.factors(key)
        if not all(axis in source for axis in (*over, *under)):
            continue
        whole, divisor = (prod(target[axis] for axis in axes) for axes in (over, under))
        if whole % divisor:
            problems.append(
                f"{key} of the config is {' x '.join(WORDS[a] for a in over)} / {' x '.join(WORDS[a] for a in under)} "
                f"and would be {' x '.join(str(target[a]) for a in over)} / {divisor}, which is not a whole number"
                + _that_keeps(prod(source[a] for a in over) * divisor, prod(source[a] for a in under), over, target)
            )
    return problems


def _that_keeps(product: int, share: int, over: Iterable[str], target: Shape) -> str:
    """In words, how many units in groups would keep a computed value, their product being `product` / `share`."""
    groups = dict(target.groups_of())
    axis = next((a for a in over if a in groups), None)
    if axis is None:
        return ""
    count, left = divmod(product, share * prod(target[a] for a in over if a != axis))
    return "" if left or count % target[groups[axis]] else f"; --{FLAG_OF_AXIS[axis]} {count} keeps what it is"


def _group_problem(axis: str, group: str, source: Shape, target: Shape) -> str | None:
    """Why so many units cannot stay in so many groups."""
    words = {**WORDS, "kv": "KV groups"}
    flag, units, groups, own = FLAG_OF_AXIS[axis], target[axis], target[group], source[axis] // source[group]
    if units % groups:
        allowed = ", ".join(map(str, range(groups, source[axis] + 1, groups)))
        return (
            f"--{flag} {units} does not divide by the {groups} {words[group]} "
            f"(the same number of {words[axis]} must stay in each); allowed: {allowed}"
        )
    if units // groups > own:
        return f"--{flag} {units} over {groups} {words[group]} is {units // groups} a group, the source has only {own}"
    return None


def _expert_problems(source: Shape, target: Shape) -> list[str]:
    if target.get("expert") != source.get("expert") and source.get("expert_group", 1) > 1:
        return [
            f"--experts {target['expert']}: this model routes by {source['expert_group']} groups of experts that lie "
            "side by side, and which experts stay is chosen without regard to them"
        ]
    if target.get("expert_active") <= target.get("expert"):
        return []
    return [
        f"--experts {target['expert']} is fewer than the {target['expert_active']} a token is routed to; "
        "lower that too with --experts-per-token"
    ]
