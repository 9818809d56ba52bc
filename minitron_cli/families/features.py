"""What can be done with models of a family, by its table alone; `python -m` prints all families for the README."""

from collections.abc import Iterable, Sequence

from minitron_cli.families import FAMILIES
from minitron_cli.families.wrappers import WRAPPERS
from minitron_cli.spec.axes import AXES, AXIS_OF_FLAG, FLAG_OF_AXIS, WORDS, is_embedding, reads
from minitron_cli.spec.family import Family

COLUMNS = (
    *("model types", "kinds of layers", "can be cut", "stays as it is"),
    *("`--compensate` refits after", "`--rotate`", "streamed", "`shear`"),
)
WRAPPER_COLUMNS = ("model type", "beside the text model", "cut with `--hidden`", "follows in config.json")


def cuttable(family: Family) -> tuple[str, ...]:
    """The options that cut models of this family."""
    axes = _axes(family) - family.refuses.keys() - dict(family.follows).keys()
    return tuple(f"--{axis.flag}" for axis in AXES if axis.flag and axis.name in axes)


def fixed(family: Family) -> tuple[str, ...]:
    """The directions of its weights that nothing cuts, in words; those that follow from another size not among them."""
    axes = _axes(family) - dict(family.follows).keys()
    return tuple(a.words for a in AXES if a.units and a.name in axes and (not a.flag or a.name in family.refuses))


def compensated(family: Family) -> tuple[str, ...]:
    """The options after which what stays is refitted: of axes that matrices read, or that group what they read."""
    read = {axis for weight in family.weights if not is_embedding(weight) for axis in reads(weight)}
    axes = read | {group for axis, group in family.groups if axis in read}
    return tuple(flag for flag in cuttable(family) if AXIS_OF_FLAG[flag.removeprefix("--")] in axes)


def streams(family: Family) -> bool:
    """Whether importance can be measured one layer at a time, as models of a single layer."""
    return not family.whole


def kinds(family: Family) -> tuple[str, ...]:
    """The kinds of layers of its table."""
    return tuple(dict.fromkeys(weight.kind for weight in family.weights if weight.kind))


def rotates(family: Family) -> str | None:
    """Why the residual stream cannot be rotated (--rotate); None where it can."""
    return None if family.norms else family.unrotated


def unmasked(family: Family) -> dict[str, str]:
    """The axes that masks cannot be learned for (shear), and why; an axis of the name "" stands for all."""
    if "value_head" in family.axes():
        return {"": "the gated norms of linear attention have no masks yet"}
    found = {}
    if family.corrects_choice:
        found["expert"] = "a bias corrects the choice of experts, which masks do not reach"
    if "mamba_head" in family.axes():
        found |= dict.fromkeys(("mamba_head", "mamba_dim"), "the gated norms of Mamba layers have no masks yet")
        found["layer"] = "where its kernels are installed, a Mamba layer reads its output matrix past the mask"
    return found


def limits(family: Family, layers_differ: bool) -> list[str]:
    """What cannot be done with a model of this family, and why."""
    found = [f"prune --rotate: {why}"] if (why := rotates(family)) else []
    found += [f"shear{_flag(axis)}: {why}" for axis, why in unmasked(family).items()]
    found += [f"importance --mode stream: {family.whole}"] * bool(family.whole)
    if family.corrects_choice:
        found.append("importance --expert-damage: a bias corrects the choice of experts")
    for key in family.computed:
        over, under = (" x ".join(WORDS[axis] for axis in axes) for axes in family.factors(key))
        found += [f"prune: {over} must stay a multiple of {under} ({key} of the config)"] if under else []
    if layers_differ and not {"", "layer"} & unmasked(family).keys():
        found.append("shear --layers: the layers are of several kinds")
    return found


def _flag(axis: str) -> str:
    return f" --{FLAG_OF_AXIS[axis]}" if axis else ""


def rows() -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, one for all families with which the same can be done."""
    found: dict[tuple[str, ...], list[str]] = {}
    for family in FAMILIES:
        cells = (
            ", ".join(kinds(family)) or "one",
            _cuttable(family),
            ", ".join(fixed(family)),
            _codes(compensated(family)),
            "no" if rotates(family) else "yes",
            "yes" if streams(family) else "no",
            _masks(family),
        )
        found.setdefault(cells, []).extend(family.model_types)
    return [(", ".join(f"`{name}`" for name in names), *cells) for cells, names in found.items()]


def _cuttable(family: Family) -> str:
    """The options that cut, with the dense model type that one expert makes."""
    dense = f" (1: `{family.dense.model_type}`)" if family.dense else ""
    return _codes(cuttable(family)).replace("`--experts`", f"`--experts`{dense}")


def _masks(family: Family) -> str:
    without = dict.fromkeys([*(["layer"] if family.kinds else []), *unmasked(family)])
    if "" in without:
        return "no"
    return f"but not {_codes(_flag(axis).strip() for axis in without)}" if without else "yes"


def markdown() -> str:
    """The table of all families."""
    return _table(COLUMNS, rows())


def wrappers_markdown() -> str:
    """The table of models of text and images."""
    found = [(f"`{w.model_type}`", _codes(w.modules), _codes(w.lines), _codes(w.follows)) for w in WRAPPERS]
    return _table(WRAPPER_COLUMNS, found)


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *lines))


def _axes(family: Family) -> set[str]:
    numbers = {axis.name for axis in AXES if not axis.units and axis.name in family.config_keys}
    return {*family.axes(), *numbers}


def _codes(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    print(markdown(), wrappers_markdown(), sep="\n\n")
