"""Open a checkpoint directory by its config and headers alone, and check that its family's table explains it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.headers import FLOATS, TensorInfo, read_header
from minitron_cli.checkpoint.validation import known_activations
from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.families import FAMILIES, family_of
from minitron_cli.spec.axes import Weight, size
from minitron_cli.spec.family import Family, Match, match
from minitron_cli.spec.shape import Shape, copies, shape_of

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FETCHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.txt")
PREDICTOR = "predictor"  # the kind of layers that predict tokens beyond the next
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory as the tables see it; no tensor has been read yet."""

    path: Path
    config: Mapping[str, Any]
    family: Family
    shape: Shape
    tensors: Mapping[str, TensorInfo]
    matches: Mapping[str, Match]

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in name order."""
        return tuple(sorted({t.file for t in self.tensors.values()}))

    @property
    def num_bytes(self) -> int:
        return sum(t.num_bytes for t in self.tensors.values())


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a local directory or a hub id. Raises MinitronError where the table and the files disagree."""
    path = resolve_model(model)
    config = load_config(path)
    family = family_of(str(config.get("model_type")))
    if unmet := family.unmet(config):
        raise MinitronError(
            f"{path} is a {family.name} variant that cannot be pruned yet: {'; '.join(unmet)}",
            "its layers have weights that the table does not describe",
        )
    shape = shape_of(family, config)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise MinitronError(
            f"{path} is quantised with {method}: packed weights and their scales cannot be sliced",
            "give the unquantised checkpoint (or dequantise it: from_pretrained, model.dequantize(), save_pretrained)",
        )
    tensors = list_tensors(path)
    matches = _explain(family, config, shape, tensors, path)
    _require_floats(matches, tensors, path)
    return Checkpoint(path, config, family, shape, tensors, matches)


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
            f"{model} is no directory here, and the hub did not give it: {str(error).splitlines()[0]}",
            "check the spelling, or download the model and give its directory",
        ) from error


def load_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory as a dictionary, in its family's normal form."""
    file = path / "config.json"
    if not file.is_file():
        raise MinitronError(
            f"{path} is no checkpoint: it has no config.json", "give the directory that holds config.json"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_nan)
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "fetch the file again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise MinitronError(f"{file} names no model_type", "give a Hugging Face model directory")
    known = known_activations()
    for key in ("hidden_act", "hidden_activation"):
        if known and config.get(key) is not None and config[key] not in known:
            raise MinitronError(
                f"{file}: {key} is {config[key]!r}, which transformers does not know", near_matches(config[key], known)
            )
    family = next((f for f in FAMILIES if config["model_type"] in f.model_types), None)
    return family.normal(config) if family is not None and family.normal is not None else config


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
    matches, unknown = match(family, (name for name in tensors if name not in further))
    matches |= {name: Match(name, Weight(name, (), optional=True, junk=True, kind=PREDICTOR)) for name in further}
    problems = [f"the table does not know {name}" for name in unknown]
    seen: dict[str, int] = {}
    for name, found in matches.items():
        seen[found.weight.name] = seen.get(found.weight.name, 0) + 1
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
        if seen.get(weight.name, 0) < copies(weight, shape):
            problems.append(f"{weight.name}: {seen.get(weight.name, 0)} of {copies(weight, shape)} tensors are there")
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise MinitronError(
            f"{path} is not the {config['model_type']} model of its config: {'; '.join(problems[:4])}{more}",
            "check that config.json and the weights belong together and are complete",
        )
    return matches


def _predicts_further(family: Family, config: Mapping[str, Any], shape: Shape, name: str) -> bool:
    """Whether a tensor belongs to layers that predict tokens beyond the next (see Family.predictors)."""
    if not family.predictors:
        return False
    layers = max(config.get(key) or 0 for key in family.predictors)
    behind = [f"model.layers.{shape['layer'] + i}." for i in range(layers)]
    return name.startswith(("mtp.", *behind))


def _require_floats(matches: Mapping[str, Match], tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Integers, booleans and float8 are weights only together with scales, which the tables do not describe."""
    wrong = [n for n, found in matches.items() if not found.weight.junk and tensors[n].dtype not in FLOATS]
    if wrong:
        raise MinitronError(
            f"{path} stores {len(wrong)} weights in other types than {', '.join(FLOATS)}, "
            f"e.g. {wrong[0]} as {tensors[wrong[0]].dtype}, and has no quantization_config",
            "without their scales such numbers are no weights; give the unquantised checkpoint",
        )


def _sizes(weight: Weight, shape: Shape) -> tuple[int, ...]:
    return tuple(size(dim, shape.sizes) for dim in weight.dims)
