"""A text model inside a model of text and images: how its names begin on disk, and where vision meets it.

The text model has the table of its own family. What stands beside it (vision tower, projector) is in no table:
only the few weights that end in the residual stream have lines, in the grammar of the tables, with `*` for a dimension
that stays as it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minitron_cli.spec.axes import Weight, parse_line
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import Shape

PROJECTOR = "projector"  # the axis of the neurons inside a projector
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_TEXT, _HEAD = "model.", "lm_head."  # how a text model's own names begin


@dataclass(frozen=True, slots=True)
class Prefixes:
    """How names on disk begin: of the text model, of its output head, and of what stands beside it."""

    text: str
    head: str
    beside: str

    def renamings(self) -> dict[str, str]:
        """How names of the text model begin on disk -> how they begin in its table."""
        return {self.text: _TEXT, self.head: _HEAD}

    def inside(self, name: str) -> str | None:
        """The name that a tensor has in its text model's table; None for one beside it."""
        for prefix, own in self.renamings().items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return None

    def on_disk(self, name: str) -> str:
        """The name on disk of a tensor that the text model's table calls `name`."""
        for prefix, own in self.renamings().items():
            if name.startswith(own):
                return prefix + name.removeprefix(own)
        return name


BEFORE_5 = Prefixes("language_model.model.", "language_model.lm_head.", "")
SINCE_5 = Prefixes("model.language_model.", "lm_head.", "model.")
TEXT_MODEL = Prefixes("model.text_model.", "lm_head.", "model.")
SIDE_BY_SIDE = Prefixes("model.", "lm_head.", "")  # in names of SINCE_5 this beginning is found too: it comes after it


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A model of text and images, by its model_type.

    `modules` are those that stand beside the text model, `lines` the dimensions of their weights that have to do with
    the residual stream, by name. `follows` maps a key of config.json, with dots between levels, to the axis whose
    size it repeats. `prefixes` are the ways in which its checkpoints spell names, first that of transformers'
    modules. `text_types` maps the type of a text model that is not a language model by itself to the one that it is
    equal to where there is only text. `early` is the key of config.json that lists one entry for each of the first
    layers after which features of images enter once more. `derived` are the axes of the text model whose sizes
    config.json cannot state inside the whole, though it can of the text model by itself: heads are then as wide as
    hidden / heads. `text_values` holds values of config.json without which a text model of `text_types` is not that
    of the whole. `transposed` are the lines of the text model's table whose matrices published checkpoints store
    transposed, which transformers recognises by their shape.
    """

    model_type: str
    modules: tuple[str, ...]
    lines: Mapping[str, str]
    follows: Mapping[str, str] = field(default_factory=dict)
    text_types: Mapping[str, str] = field(default_factory=dict)
    early: str = ""
    derived: tuple[str, ...] = ()
    text_values: Mapping[str, Any] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    prefixes: tuple[Prefixes, ...] = (SINCE_5, BEFORE_5)

    def around(self, family: Family) -> Family:
        """The family of the text model, with the axis of a projector that config.json makes as wide as `hidden`."""
        if self.text_types:
            family = replace(family, dense=None)  # the wrapper takes text models of one type only
        keys = {axis: key for axis, key in family.config_keys.items() if axis not in self.derived}
        if not any(PROJECTOR in dims.split() for dims in self.lines.values()):
            return replace(family, config_keys=keys)
        keys[PROJECTOR] = keys["hidden"]
        return replace(family, config_keys=keys, follows=(*family.follows, (PROJECTOR, "hidden")))

    def spelling(self, names: Iterable[str]) -> Prefixes | None:
        """The prefixes that these names on disk have; None where they have none of them."""
        names = tuple(names)
        return next((one for one in self.prefixes if any(name.startswith(one.text) for name in names)), None)

    def line(self, name: str, shape: tuple[int, ...], prefixes: Prefixes) -> Weight | None:
        """The line of a tensor beside the text model; None where the wrapper has none of this name and rank."""
        own = name.removeprefix(prefixes.beside)
        if not name.startswith(prefixes.beside) or own.partition(".")[0] not in self.modules:
            return None
        line = self._line_name(own)
        dims = self.lines[line].split() if line in self.lines else ["*"] * len(shape) or ["[]"]
        if len(shape) != len([dim for dim in dims if dim not in ("?", "[]")]):
            return None
        sizes = [str(shape[i]) if dim == "*" else dim for i, dim in enumerate(dims)]
        return parse_line(" ".join([name, *sizes]))

    def missing(self, names: Iterable[str], prefixes: Prefixes) -> list[str]:
        """The lines that no tensor has, but for those that may be absent (`?`)."""
        there = {self._line_name(name.removeprefix(prefixes.beside)) for name in names}
        return [own for own, dims in self.lines.items() if own not in there and not dims.endswith("?")]

    def _line_name(self, name: str) -> str:
        """A name as lines have it: as it is, or else with `{}` for an index."""
        return name if name in self.lines else _INDEX.sub("{}", name)

    def resized(self, config: Mapping[str, Any], target: Shape) -> dict[str, Any]:
        """A config.json dictionary whose keys that repeat a size have those of `target`."""
        result = dict(config)
        for path, axis in self.follows.items():
            *outer, key = path.split(".")
            level = result
            for name in outer:
                level[name] = level = dict(level[name])
            level[key] = target[axis]
        return result


def wrapper(model_type: str, modules: str, table: str, **fields: Any) -> Wrapper:
    """Build a wrapper from the names of its modules and the text of its lines."""
    lines = (line.split(maxsplit=1) for line in table.splitlines() if line.strip())
    return Wrapper(model_type, tuple(modules.split()), {name: dims.strip() for name, dims in lines}, **fields)
