"""A model family: the config key of each axis' size, and one line per weight."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from minitron_cli.spec.axes import CONFIG_KEYS, GROUPS, Weight, axes_of, parse_table
from minitron_cli.spec.kinds import Kinds

_DERIVED = re.compile(r"[+*]")
CORRECTION = "correction_bias"  # how the weight ends that corrects the choice of experts


@dataclass(frozen=True, slots=True)
class Dense:
    """The dense model type that computes the same as a mixture of one expert, whose router gives that expert weight 1.

    `lines` maps each line of an expert to the dense lines that its rows are, in order. Every other line with an axis of
    experts is a router's and is dropped; all others have the same name in both. `config` holds values without which the
    dense model would compute something else.
    """

    model_type: str
    lines: Mapping[str, tuple[str, ...]]
    config: Mapping[str, Any] = field(default_factory=dict)

    def keeps(self, weight: Weight) -> bool:
        """Whether the dense model has what a line of the mixture holds."""
        return weight.name in self.lines or "expert" not in {*weight.name_axes, *weight.axes}


@dataclass(frozen=True, slots=True)
class Assumption:
    """What `engines` assume about an architecture; `breach` returns in words where a model differs, "" if nowhere.

    It is called with a model's config, in which every list with one entry a layer is written out, and its Shape.
    Where `types` are named, the assumption is about models of those types only. Constructors are in `assumptions`.
    """

    engines: tuple[str, ...]
    breach: Callable[[Mapping[str, Any], Any], str]
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """The weights of one architecture, as they are named on disk.

    A layer's lines begin with the norm through which it reads the residual stream, where it has one.
    `config_keys` maps an axis to its key in config.json (`a|b` where it goes by several names; `a+b` and `a*b` where
    its size follows from others and is not written). A family whose `head_dim` has no key derives
    it from hidden / heads; one whose `kv` has no key has as many key/value heads as heads.
    `defaults` holds config values that old or hand-written configs leave out.
    `per_layer` names config lists with one entry per layer, `per_layer_index` lists of layer indices: both follow the
    layers that stay.
    `requires` holds config values that the table needs; a config with other values is another architecture.
    `refuses` maps an axis that cannot be cut exactly to the reason, `warns` one that can be cut at a stated cost.
    `repair` names a correction of values that trimming needs to keep the function (see prune/repairs).
    `norms` says how the residual stream is read: the line of the weights of each norm, and what the names of the
    weights that read its output begin with. It is empty where the stream cannot be rotated (see prune/rotate), for the
    reason `unrotated`. `norm_offset` is what those norms add to their weights; `centred` ones are LayerNorms, which
    subtract the mean of the stream first, the others RMS norms.
    `groups` pairs an axis with the one that groups it: every unit of the second holds as many units of the first.
    `kinds` says how the config tells layers of several kinds apart, where the table has sections for them.
    `follows` pairs an axis with the one that its size is a fixed multiple of, both being stated by one key.
    `predictors` are the config keys that count layers which predict tokens beyond the next. On disk they are numbered
    on from the last layer, or stand under `mtp.`; transformers does not load them, and pruned models have none.
    `computed` maps a config key to the formula of its value in sizes of axes, `a*b/c`: a whole number in every model.
    `whole` is the reason why one layer cannot be run as a model: importance is then not measured layer by layer.
    `normal` rewrites a config that does not state its sizes as plain numbers into one that does.
    `dense` is what a mixture of one expert is without its router, where transformers has a model type for that.
    `engines` is what engines take for granted of its models, and a cut may change (see spec/assumptions).
    """

    name: str
    model_types: tuple[str, ...]
    weights: tuple[Weight, ...]
    config_keys: Mapping[str, str] = field(default_factory=lambda: dict(CONFIG_KEYS))
    defaults: Mapping[str, Any] = field(default_factory=dict)
    per_layer: tuple[str, ...] = ("layer_types",)
    per_layer_index: tuple[str, ...] = ()
    requires: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    warns: Mapping[str, str] = field(default_factory=dict)
    repair: str | None = None
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norm_offset: float = 0.0
    centred: bool = False
    unrotated: str = ""
    groups: tuple[tuple[str, str], ...] = GROUPS
    kinds: tuple[Kinds, ...] = ()
    follows: tuple[tuple[str, str], ...] = ()
    predictors: tuple[str, ...] = ()
    computed: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""
    normal: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    dense: Dense | None = None
    engines: tuple[Assumption, ...] = ()

    def with_(self, lines: str, **changes: Any) -> "Family":
        """A derived family: each line replaces the line of the same name, or is added; keyword changes as given."""
        table = {(w.name, w.kind): w for w in self.weights}
        alone = {w.name: (w.name, w.kind) for w in self.weights}
        table.update({alone.get(w.name, (w.name, w.kind)): w for w in parse_table(lines)})
        return replace(self, weights=tuple(table.values()), **changes)

    def axes(self) -> frozenset[str]:
        """All axes of the table."""
        return frozenset(axis for w in self.weights for axis in (*w.name_axes, *w.axes))

    def kinds_of_layers(self, config: Mapping[str, Any], num_layers: int) -> tuple[tuple[str, ...], ...]:
        """The kinds of each layer, one of each way that layers differ in; empty where all are alike."""
        return tuple(zip(*(kinds.read(config, num_layers) for kinds in self.kinds)))

    def norm_of(self, weight: Weight) -> str | None:
        """The line of the norm after which a weight reads the stream, None for all that does not read it."""
        if len(weight.dims) < 2 or weight.junk or axes_of(weight.dims[-1]) != ("hidden",):
            return None
        return next((line for line, starts in self.norms.items() if weight.name.startswith(starts)), None)

    @property
    def corrects_choice(self) -> bool:
        """Whether experts are chosen by scores to which a bias of each expert is added."""
        return any(weight.name.endswith(CORRECTION) for weight in self.weights)

    def kinds_with(self) -> dict[str, frozenset[str]]:
        """The kinds of layers that have an axis, for every axis that not all layers have."""
        found: dict[str, set[str | None]] = {}
        for weight in self.weights:
            for axis in {*weight.name_axes, *weight.axes}:
                found.setdefault(axis, set()).add(weight.kind)
        return {axis: frozenset(map(str, kinds)) for axis, kinds in found.items() if None not in kinds}

    def layouts(self) -> tuple[str, ...]:
        """The names of the storage layouts, the usual one first; empty where there is only one way to store."""
        return tuple(dict.fromkeys(w.layout for w in self.weights if w.layout))

    def key(self, axis: str, config: Mapping[str, Any]) -> str | None:
        """The config key of an axis: of the names it goes by (`num_experts|num_local_experts`) the one in use."""
        names = self.config_keys[axis].split("|") if axis in self.config_keys else []
        names = [name for name in names if not _DERIVED.search(name)]
        return next((name for name in names if config.get(name) is not None), names[0] if names else None)

    def derived(self, axis: str, config: Mapping[str, Any]) -> int | None:
        """The size of an axis that follows from other config values: 0 where one is missing, None where none does."""
        found = _DERIVED.search(self.config_keys[axis])
        if found is None:
            return None
        parts = [config.get(name) or 0 for name in self.config_keys[axis].split(found[0])]
        whole = all(type(part) is int and part > 0 for part in parts)
        return (prod(parts) if found[0] == "*" else sum(parts)) if whole else 0

    def factors(self, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The axes that make a computed config key: those that are multiplied, those that divide the product."""
        over, _, under = self.computed[key].partition("/")
        return tuple(over.split("*")), tuple(filter(None, under.split("*")))

    def expected(self, config: Mapping[str, Any], layout: str | None = None) -> tuple[Weight, ...]:
        """The weights that a checkpoint with this config must hold: lines without `?`, and those whose key decides so.

        Of alternative layouts, those of `layout` (the usual one if None). A bare `?` line is never expected.
        """
        layout = layout or next(iter(self.layouts()), None)
        return tuple(w for w in self.weights if w.layout in (None, layout) and self._expects(w, config))

    def unmet(self, config: Mapping[str, Any]) -> list[str]:
        """In words, where this config differs from what the table requires."""
        found = {key: config.get(key) for key in self.requires}
        return [
            f"{key} is {value!r}, the {self.name} table needs {self.requires[key]!r}"
            for key, value in found.items()
            if value is not None and value != self.requires[key]
        ]

    def _expects(self, weight: Weight, config: Mapping[str, Any]) -> bool:
        if not weight.optional:
            return True
        if weight.when is None:
            return False
        key, wanted = weight.when.lstrip("!"), not weight.when.startswith("!")
        return bool(config.get(key, self.defaults.get(key, False))) is wanted


def family(name: str, model_types: Iterable[str], table: str, **fields: Any) -> Family:
    """Build a family from its table text."""
    return Family(name, tuple(model_types), parse_table(table), **fields)


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor name, the line that describes it, and where in the model it is."""

    name: str
    weight: Weight
    layer: int | None = None
    expert: int | None = None


_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")


def match(
    family: Family, names: Iterable[str], kinds: Sequence[tuple[str, ...]] = ()
) -> tuple[dict[str, Match], list[str]]:
    """Find each name's line: (matches by name, names that no line describes).

    `kinds` are those of each layer (see Shape): of several lines with one name that of the layer's kind is taken.
    """
    lines: dict[str, list[Weight]] = {}
    for weight in family.weights:
        lines.setdefault(weight.name, []).append(weight)
    matches, unknown = {}, []
    for name in names:
        found = _match_one(lines, name, kinds)
        if found is None:
            unknown.append(name)
        else:
            matches[name] = found
    return matches, unknown


def _match_one(lines: Mapping[str, list[Weight]], name: str, kinds: Sequence[tuple[str, ...]]) -> Match | None:
    if name in lines and not lines[name][0].name_axes:
        return Match(name, lines[name][0])
    numbers = [int(n) for n in _INDEX.findall(name)]
    slots = iter(("{layer}", "{expert}"))
    template = _INDEX.sub(lambda m: next(slots, m.group()), name)
    if template not in lines or len(numbers) != len(lines[template][0].name_axes):
        return None
    found = dict(zip(lines[template][0].name_axes, numbers))
    own = kinds[found["layer"]] if found.get("layer", len(kinds)) < len(kinds) else ()
    weight = next((w for w in lines[template] if w.kind in own), lines[template][0])
    return Match(name, weight, **found) if weight.format(**found) == name else None
