"""What transformers makes of a config, asked in a process of its own first.

There transformers is imported without torch, as it is where torch is not installed: one second of one core instead of
four, no interpreter lock to share, and no memory taken from here. What is accepted there is accepted; anything else is
asked again in this process, with all that a config may need. Run as a script, this file is that process.
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
    if "transformers" not in sys.modules:
        found = _understood_elsewhere(config)
        if found is not None:
            return found
    return _understood_here(config)


def _understood_elsewhere(config: Mapping[str, Any]) -> dict[str, Any] | None:
    if not sys.executable:
        return None
    command = [sys.executable, "-P", __file__]  # -P: nothing is imported from where the user happens to be
    done = subprocess.run(command, input=json.dumps(dict(config)).encode(), capture_output=True)
    return None if done.returncode else json.loads(done.stdout)


def _understood_here(config: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **values).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise Rejected(" ".join(str(error).split())) from error


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python marks what can not be imported
    print(json.dumps(_understood_here(json.load(sys.stdin)), default=str))
