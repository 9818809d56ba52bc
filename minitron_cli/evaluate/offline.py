"""Whether the hub can be reached, found out once and quickly: a task that needs it then fails at once."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from functools import lru_cache

_TIMEOUT_SECONDS = 4.0
_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@lru_cache(maxsize=1)
def hub_is_reachable() -> bool:
    """One request to the hub, unless the user has switched it off; a proxy from the environment is used."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _SWITCHES):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except (urllib.error.URLError, OSError, ValueError):
        return False


def go_offline() -> None:
    """Make the Hugging Face libraries look into their caches only, whether they have been imported or not."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:
            setattr(sys.modules[module], name, True)  # they read the variable only once
