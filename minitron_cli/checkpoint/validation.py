"""What transformers makes of a config, asked in a process of its own.

There transformers is imported without torch, as it is where torch is not installed: one second of one core instead of
four, no interpreter lock to share, and no memory taken from here. Should that process fail, it is asked in this one.
Run as a script, this file is that process.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class Rejected(Exception):
    """transformers does not take a config; the message says why, in its words."""


def understood(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that transformers fills in where it says nothing. Raises Rejected."""
    answer = None if "transformers" in sys.modules else _answer_elsewhere(config)
    if answer is None:
        return _understood_here(config)
    if "rejected" in answer:
        raise Rejected(answer["rejected"])
    return answer["understood"]


def _answer_elsewhere(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"understood": config} or {"rejected": why}; None where no answer came."""
    if not sys.executable:
        return None
    command = [sys.executable, "-P", __file__]  # -P: nothing is imported from where the user happens to be
    # In a session of its own a Ctrl-C does not reach it; it is gone in a second anyway.
    done = subprocess.run(command, input=json.dumps(dict(config)).encode(), capture_output=True, start_new_session=True)
    return None if done.returncode else json.loads(done.stdout)


def _answer(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"understood": _understood_here(config)}
    except Rejected as error:
        return {"rejected": str(error)}


def _understood_here(config: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **values).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise Rejected(" ".join(str(error).split())) from error


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    print(json.dumps(_answer(json.load(sys.stdin)), default=str))
