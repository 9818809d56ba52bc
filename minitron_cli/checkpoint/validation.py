"""transformers' say on a config, asked in a process of its own first.

There transformers is imported without torch, as it is where torch is not installed: one second of one core instead of
four, no interpreter lock to share with, and no memory taken. What is accepted there is accepted; anything else is asked
again in this process, with all that a config may need. Run as a script, this file is that process.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def objection(config: Mapping[str, Any]) -> str | None:
    """What transformers has against a config, or None."""
    if "transformers" not in sys.modules and _accepted_elsewhere(config):
        return None
    return _objection_here(config)


def _accepted_elsewhere(config: Mapping[str, Any]) -> bool:
    command = [sys.executable, "-P", __file__]  # -P: nothing is imported from where the user happens to be
    return (
        bool(sys.executable)
        and not subprocess.run(
            command, input=json.dumps(dict(config)).encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode
    )


def _objection_here(config: Mapping[str, Any]) -> str | None:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        AutoConfig.for_model(config["model_type"], **values)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        return " ".join(str(error).split())
    return None


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python marks what can not be imported
    sys.exit(_objection_here(json.load(sys.stdin)) is not None)
