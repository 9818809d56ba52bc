"""Whether transformers accepts a config, and which defaults it fills in, found out in a process of its own.

There transformers is imported without torch, as it is where torch is not installed: one second of one core instead of
four, no interpreter lock to share, and no memory taken from here. If that process fails, this one does the same.
Run as a script, this file is that process.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def _source_of(module: str) -> list[ast.stmt]:
    """The statements of one of transformers' modules; none where it cannot be found."""
    package = find_spec("transformers")
    file = Path(package.origin).parent / module if package and package.origin else None
    return ast.parse(file.read_text(encoding="utf-8")).body if file is not None and file.is_file() else []


@cache
def known_activations() -> tuple[str, ...]:
    """Names that transformers accepts as activation functions, read from its source: importing it takes torch.

    Empty where the source cannot be found or is written in another way.
    """
    for node in _source_of("activations.py"):
        match node:
            case ast.Assign(targets=[ast.Name(id="ACT2CLS")], value=ast.Dict(keys=keys)):
                return tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return ()


@cache
def causal_lm_class(model_type: str) -> str | None:
    """The class that AutoModelForCausalLM makes of a model_type, read from its source; None where it is not found."""
    table = _source_of("models/auto/modeling_auto.py")
    for node in table:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")], value=ast.Call(args=[ast.List(elts=pairs)])
            ):
                names = dict(ast.literal_eval(pair) for pair in pairs)
                return names.get(model_type)
    return None


class Rejected(Exception):
    """transformers rejects a config; the message is its own."""


def understood(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults that transformers fills in. Raises Rejected where it does not accept the config."""
    (answer,) = _answers([config])
    if "rejected" in answer:
        raise Rejected(answer["rejected"])
    return answer["understood"]


def objections(configs: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Why transformers rejects each of these configs, None where it does not; one process checks all."""
    return [answer.get("rejected") for answer in _answers(configs)]


def spelled_floats(value: Any) -> Any:
    """A config value with its infinite numbers as such: transformers writes them {"__float__": "Infinity"}."""
    match value:
        case {"__float__": str(number)} if len(value) == 1:
            return float(number)
        case dict():
            return {key: spelled_floats(one) for key, one in value.items()}
        case list():
            return [spelled_floats(one) for one in value]
    return value


def _answers(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{"understood": config} or {"rejected": why} for each config."""
    found = None if "transformers" in sys.modules or not configs else _answers_elsewhere(configs)
    return [_answer(config) for config in configs] if found is None else found


def _answers_elsewhere(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The answers of another process; None where none came."""
    if not sys.executable:
        return None
    command = [sys.executable, "-P", __file__]  # -P: nothing is imported from where the user happens to be
    # In a session of its own a Ctrl-C does not reach it; it is gone in a second anyway.
    told = json.dumps([dict(config) for config in configs]).encode()
    done = subprocess.run(command, input=told, capture_output=True, start_new_session=True)
    return None if done.returncode else json.loads(done.stdout)


def _answer(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"understood": _understood_here(config)}
    except Rejected as error:
        return {"rejected": str(error)}


def _understood_here(config: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
    from transformers import AutoConfig

    values = {key: spelled_floats(value) for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **values).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        # One of a whole class says which of its methods found it; one of a field names the field.
        of_class = isinstance(error, StrictDataclassClassValidationError) and error.__cause__ is not None
        reason = error.__cause__ if of_class else error
        raise Rejected(" ".join(str(reason).split())) from error


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    print(json.dumps([_answer(config) for config in json.load(sys.stdin)], default=str))
