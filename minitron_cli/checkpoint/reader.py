"""Open a checkpoint directory by its config and headers alone, and check that its family's table explains it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.codes import transposed
from minitron_cli.checkpoint.headers import FLOATS, TensorInfo, read_header
from minitron_cli.checkpoint.quantised import method_of, plain_config, plain_tensors, require_known
from minitron_cli.checkpoint.validation import known_activations
from minitron_cli.checkpoint.wrapping import Wrapping, text_config
from minitron_cli.errors import MinitronError, first_line, near_matches
from minitron_cli.families import family_of, known_family, wrapper_of
from minitron_cli.spec.axes import Weight, size
from minitron_cli.spec.family import Family, Match, match
from minitron_cli.spec.shape import Shape, copies, shape_of
from minitron_cli.spec.wrapper import Prefixes, Wrapper

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FETCHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.txt")
PREDICTOR = "predictor"  # the kind of layers that predict tokens beyond the next
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of a model directory before anything is dequantised or renamed: config.json, and tensors by name.

    A model's identity is that of these. `method` is how they are quantised, None where they are plain.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory as the tables see it, plain where its files are quantised; no tensor has been read yet.

    Of a model of text and images that is the text model: its config, shape and matches, and its tensors under the names
    that they have without a wrapper. `wrapping` is what stands around it, `whole` all of config.json, and `tensors`
    holds the others too, under their names on disk. `stored` is what the files say.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    shape: Shape
    tensors: Mapping[str, TensorInfo]
    matches: Mapping[str, Match]
    whole: Mapping[str, Any]
    stored: Stored
    wrapping: Wrapping | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in name order."""
        return tuple(sorted({t.file for t in self.stored.tensors.values()}))

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that matches explain: of models of text and images, the text model's. Dequantised."""
        return sum(self.tensors[name].num_bytes for name in self.matches)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the same tensors as they are stored, with their scales."""
        return sum(self.tensors[name].stored_bytes for name in self.matches)

    @property
    def beside(self) -> Mapping[str, Match]:
        """The tensors beside the text model, by name on disk; empty where there is nothing around it."""
        return self.wrapping.beside if self.wrapping is not None else {}

    @property
    def is_text_alone(self) -> bool:
        """Whether this is the text model taken out of a model of text and images (see `unwrapped`)."""
        return self.wrapping is None and wrapper_of(str(self.whole["model_type"])) is not None

    def on_disk(self, name: str) -> str:
        """The name on disk of a tensor that the table calls `name`."""
        return self.wrapping.prefixes.on_disk(name) if self.wrapping is not None else name

    def unwrapped(self) -> "Checkpoint":
        """The text model alone, where there is something around it. Raises MinitronError where there is not."""
        if self.wrapping is None:
            raise MinitronError(f"{self.path} is a text model already", "leave --text-only out")
        family = family_of(str(self.config["model_type"]))
        return replace(self, wrapping=None, family=family, shape=shape_of(family, self.config))

    @property
    def dequantised(self) -> dict[str, str] | None:
        """How the files are quantised, and the type that the values are given; None where they are plain."""
        method = self.stored.method
        return {"method": method, "dtype": self.config["dtype"]} if method is not None else None


def open_checkpoint(model: str | Path, dequantize: str | None = None) -> Checkpoint:
    """Open a local directory or a hub id. Raises MinitronError where the table and the files disagree.

    One that is quantised is refused without `dequantize`, the type that its weights are given ("bfloat16").
    """
    path = resolve_model(model)
    whole, config = load_whole_config(path), load_config(path)
    family, wrapper = family_of(str(config.get("model_type"))), wrapper_of(str(whole["model_type"]))
    if wrapper is not None:
        family = wrapper.around(family)
    if unmet := family.unmet(config):
        raise MinitronError(
            f"{path} is a {family.name} variant that cannot be pruned yet: {'; '.join(unmet)}",
            "its layers have weights that the table does not describe",
        )
    shape = shape_of(family, config)
    _check_method(config, path, dequantize is not None)
    stored, wrapping = Stored(whole, list_tensors(path), method_of(config)), None
    tensors = stored.tensors
    if dequantize is not None:
        tensors = plain_tensors(tensors, config, dequantize, path)
        whole, config = plain_config(whole, dequantize), plain_config(config, dequantize)
    if wrapper is not None:
        tensors, wrapping = _parted(wrapper, family, shape, tensors, path)
    beside = wrapping.beside if wrapping is not None else {}
    inside = {name: info for name, info in tensors.items() if name not in beside}
    matches = _explain(family, config, shape, inside, path)
    _require_floats(matches, inside, path)
    return Checkpoint(path, config, family, shape, tensors, matches, whole, stored, wrapping)


def _check_method(config: Mapping[str, Any], path: Path, dequantize: bool) -> None:
    """Refuse what is quantised where it is not to be dequantised, or cannot be, and what is not where it is to be."""
    method = method_of(config)
    if method is None and dequantize:
        raise MinitronError(f"{path} is not quantised", "leave --dequantize out")
    if method is None:
        return
    require_known(config, path)
    if not dequantize:
        raise MinitronError(
            f"{path} is quantised with {method}: packed weights and their scales cannot be sliced",
            "add --dequantize to prune and importance; elsewhere give the plain checkpoint that "
            f"`minitron prune {path} --dequantize -o OUT` writes",
        )


def _parted(
    wrapper: Wrapper, family: Family, shape: Shape, on_disk: Mapping[str, TensorInfo], path: Path
) -> tuple[dict[str, TensorInfo], Wrapping]:
    """The tensors of a model of text and images, those of its text model by the names of its table, and the others'
    lines. What the wrapper does not describe is named in one error."""
    prefixes = _spelling(wrapper, on_disk, path)
    tensors, beside, problems = {}, {}, []
    for name, info in on_disk.items():
        inside = name if _foresees(family, name) else prefixes.inside(name)
        if inside is not None:
            tensors[inside] = _turned(wrapper, family, shape, inside, info)
            continue
        tensors[name] = info
        if (line := wrapper.line(name, info.shape, prefixes)) is None:
            problems.append(f"{wrapper.model_type} is not known to have {name} {list(info.shape)}")
        elif info.shape != (wanted := _sizes(line, shape)):
            problems.append(f"{name} has shape {list(info.shape)}, the config says {list(wanted)}")
        else:
            beside[name] = Match(name, line)
    problems += [f"{name} is not there" for name in wrapper.missing(beside, prefixes)]
    _require_floats({name: one for name, one in beside.items() if one.weight.axes}, tensors, path)
    if problems:
        raise _not_of_its_config(path, wrapper.model_type, problems)
    return tensors, Wrapping(wrapper, prefixes, beside)


def _turned(wrapper: Wrapper, family: Family, shape: Shape, name: str, info: TensorInfo) -> TensorInfo:
    """A tensor of the text model as its table describes it, where it is stored transposed. Square matrices are taken
    as they are, as transformers does."""
    found = match(family, [name], shape.kinds)[0].get(name) if wrapper.transposed else None
    if found is None or found.weight.name not in wrapper.transposed or info.codes is not None:
        return info
    other = transposed(info)
    return other if info.shape != (wanted := _sizes(found.weight, shape)) and other.shape == wanted else info


def resolve_model(model: str | Path, patterns: Sequence[str] = _FETCHED) -> Path:
    """A directory stays what it is; of `org/name` the files that match are fetched from the hub."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or not _HUB_ID.fullmatch(str(model)):
        raise MinitronError(f"{model} is not a model directory", "give a directory that holds config.json, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MinitronError(
            f"{model} is not a directory here, and the hub did not give it: {first_line(error)}",
            "check the spelling, or download the model and give its directory",
        ) from error


def load_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory as a dictionary, in its family's normal form; that of its text model, where it
    is a model of text and images."""
    config = _read_config(path)
    around = wrapper_of(str(config["model_type"]))
    config = normal_config(config, False if around is not None and _has_head(path) else None)
    known = known_activations()
    for key in ("hidden_act", "hidden_activation"):
        if known and config.get(key) is not None and config[key] not in known:
            raise MinitronError(
                f"{path / 'config.json'}: {key} is {config[key]!r}, which transformers does not know",
                near_matches(config[key], known),
            )
    return config


def normal_config(config: Mapping[str, Any], tied: bool | None = None) -> dict[str, Any]:
    """The text model's part of a config.json dictionary, in its family's normal form (see `text_config`)."""
    config = dict(config)
    if (wrapper := wrapper_of(str(config.get("model_type")))) is not None:
        config = text_config(config, wrapper, tied)
    family = known_family(config.get("model_type"))
    return family.normal(config) if family is not None and family.normal is not None else config


def load_whole_config(path: Path) -> dict[str, Any]:
    """All of config.json: of a model of text and images as it stands there, else as `load_config` gives it."""
    config = _read_config(path)
    return config if wrapper_of(str(config["model_type"])) is not None else load_config(path)


def wrapper_around(path: Path) -> Wrapper | None:
    """What stands around the text model of a directory of text and images; None where it is no such model."""
    return wrapper_of(str(_read_config(path)["model_type"]))


def text_prefixes(path: Path) -> Prefixes | None:
    """How the names of the text model begin in a directory of text and images; None where it is no such model."""
    wrapper = wrapper_around(path)
    return None if wrapper is None else _spelling(wrapper, list_tensors(path), path)


def _spelling(wrapper: Wrapper, names: Iterable[str], path: Path) -> Prefixes:
    found = wrapper.spelling(names)
    if found is None:
        raise MinitronError(
            f"{path} has no tensor whose name begins with {' or '.join(one.text for one in wrapper.prefixes)}",
            f"a {wrapper.model_type} checkpoint has its text model there; is it complete?",
        )
    return found


def _has_head(path: Path) -> bool:
    """Whether a directory of text and images stores an output head beside the embedding."""
    if not any(path.glob("*.safetensors")):
        return False
    prefixes = text_prefixes(path)
    return prefixes is not None and any(name.startswith(prefixes.head) for name in list_tensors(path))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise MinitronError(
            f"{path} is not a checkpoint: it has no config.json", "give the directory that holds config.json"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_nan)
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "fetch the file again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise MinitronError(f"{file} names no model_type", "give a Hugging Face model directory")
    return config


def has_weights(path: Path) -> bool:
    """Whether a model directory holds weights of any format, or an index of them."""
    patterns = ("*.safetensors", "*.safetensors.index.json", *_PICKLES)
    return any(file for pattern in patterns for file in path.glob(pattern))


def _no_nan(constant: str) -> float:
    """Infinity has its uses in a config (an open interval), NaN has none."""
    if constant == "NaN":
        raise ValueError("it holds NaN")
    return float(constant)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory: model.safetensors, or the shards its index names."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        return _shards(path, index)
    if single.is_file():
        return [single]
    if found := sorted(f.name for pattern in _PICKLES for f in path.glob(pattern)):
        raise MinitronError(
            f"{path} holds pickled weights ({', '.join(found[:3])}), which can run code when read and are refused",
            "convert them to safetensors first, e.g. with save_pretrained(..., safe_serialization=True)",
        )
    raise MinitronError(f"{path} holds no weights (model.safetensors or its index)", "is the download complete?")


def list_tensors(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a directory by name, from the headers alone."""
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        header = read_header(file)
        if twice := sorted(tensors.keys() & header.keys()):
            raise MinitronError(
                f"{twice[0]!r} stands in both {tensors[twice[0]].file.name} and {file.name}",
                "remove the stale shard; the index should name each tensor once",
            )
        tensors.update(header)
    return tensors


def text_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a directory's text model by the names of its table; where nothing stands around it, all.

    Those that are quantised are seen as bfloat16.
    """
    config, tensors, prefixes = load_config(path), list_tensors(path), text_prefixes(path)
    if method_of(config) is not None:
        tensors = plain_tensors(tensors, config, "bfloat16", path)
    if prefixes is None:
        return tensors
    wrapper = wrapper_around(path)
    assert wrapper is not None
    family = wrapper.around(family_of(str(config["model_type"])))
    shape = shape_of(family, config)
    named = ((prefixes.inside(name), info) for name, info in tensors.items())
    inside = {name: replace(info, name=name) for name, info in named if name is not None}
    return {name: _turned(wrapper, family, shape, name, info) for name, info in inside.items()}


def stored_otherwise(path: Path) -> bool:
    """Whether a directory that is not quantised stores tensors of its text model transposed."""
    config = load_config(path)
    return method_of(config) is None and any(info.codes is not None for info in text_tensors(path).values())


def _shards(path: Path, index: Path) -> list[Path]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise MinitronError(f"{index} is not a safetensors index: {error}", "fetch the file again") from error
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise MinitronError(
            f"{index} points at {outside[0]!r}, which is not a .safetensors file beside it",
            "shards must lie in the checkpoint's own directory",
        )
    if missing := [name for name in names if not (path / name).is_file()]:
        raise MinitronError(
            f"{path} lacks {len(missing)} of {len(names)} shards, e.g. {missing[0]}", "fetch them again"
        )
    return [path / name for name in names]


def _explain(
    family: Family, config: Mapping[str, Any], shape: Shape, tensors: Mapping[str, TensorInfo], path: Path
) -> dict[str, Match]:
    """Every tensor's line; unknown, missing, misplaced and misshapen tensors are all named in one error."""
    further = {name for name in tensors if _predicts_further(family, config, shape, name)}
    matches, unknown = match(family, (name for name in tensors if name not in further), shape.kinds)
    matches |= {name: Match(name, Weight(name, (), optional=True, junk=True, kind=PREDICTOR)) for name in further}
    problems = [f"the table does not know {name}" for name in unknown]
    seen: dict[Weight, int] = {}
    for name, found in matches.items():
        seen[found.weight] = seen.get(found.weight, 0) + 1
        if (found.layer or 0) >= shape["layer"] or (found.expert or 0) >= shape.get("expert", 1):
            problems.append(f"{name} lies beyond the config's {shape['layer']} layers")
        elif found.layer is not None and found.layer not in shape.layers_of_kind(found.weight.kind):
            kinds = " and ".join(shape.kinds[found.layer])
            problems.append(f"{name} belongs to a {found.weight.kind} layer, the config says that this one is {kinds}")
        elif not found.weight.junk and tensors[name].shape != (wanted := _sizes(found.weight, shape)):
            problems.append(f"{name} has shape {list(tensors[name].shape)}, the config says {list(wanted)}")
    layouts = sorted({m.weight.layout for m in matches.values() if m.weight.layout})
    if len(layouts) > 1:
        problems.append(f"it mixes the storage layouts {' and '.join(layouts)}")
    for weight in family.expected(config, next(iter(layouts), None)):
        if seen.get(weight, 0) < copies(weight, shape):
            problems.append(f"{weight.name}: {seen.get(weight, 0)} of {copies(weight, shape)} tensors are there")
    if problems:
        raise _not_of_its_config(path, config["model_type"], problems)
    return matches


def _not_of_its_config(path: Path, model_type: str, problems: Sequence[str]) -> MinitronError:
    more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
    return MinitronError(
        f"{path} is not the {model_type} model of its config: {'; '.join(problems[:4])}{more}",
        "check that config.json and the weights belong together and are complete",
    )


def _predicts_further(family: Family, config: Mapping[str, Any], shape: Shape, name: str) -> bool:
    """Whether a tensor belongs to layers that predict tokens beyond the next (see Family.predictors)."""
    if not family.predictors:
        return False
    layers = max(config.get(key) or 0 for key in family.predictors)
    after = [f"model.layers.{shape['layer'] + i}." for i in range(layers)]
    return _foresees(family, name) or name.startswith(tuple(after))


def _foresees(family: Family, name: str) -> bool:
    """Whether a tensor predicts tokens beyond the next, under a name apart from the model's layers."""
    return bool(family.predictors) and name.startswith("mtp.")


def _require_floats(matches: Mapping[str, Match], tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Integers, booleans and float8 are weights only together with scales, which the tables do not describe."""
    wrong = [n for n, found in matches.items() if not found.weight.junk and tensors[n].dtype not in FLOATS]
    if wrong:
        raise MinitronError(
            f"{path} stores {len(wrong)} weights in other types than {', '.join(FLOATS)}, "
            f"e.g. {wrong[0]} as {tensors[wrong[0]].dtype}, and has no quantization_config",
            "without their scales such numbers are not weights; give the unquantised checkpoint",
        )


def _sizes(weight: Weight, shape: Shape) -> tuple[int, ...]:
    return tuple(size(dim, shape.sizes) for dim in weight.dims)
