"""Data sets by name, through the `datasets` library: the only place that imports it."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minitron_cli.data.source import HubName
from minitron_cli.errors import MinitronError, first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ROWS_PER_READ = 1024


@lru_cache(maxsize=4)
def load_hub(hub: HubName) -> "Dataset":
    """The split, downloaded and prepared in the cache of `datasets`."""
    return _load(hub, streaming=False)


def stream_hub(hub: HubName) -> "IterableDataset":
    """The split, streamed as it is iterated; its `state_dict` resumes at the next row."""
    return _load(hub, streaming=True)


def _load(hub: HubName, streaming: bool) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub.name, hub.config, split=hub.split, streaming=streaming)
    except (DatasetsError, OSError, ValueError) as error:
        raise MinitronError(
            f"data set {hub.name} (config {hub.config or 'default'}, split {hub.split}) cannot be loaded: "
            f"{first_line(error)}",
            "check the name and the network, or give a local file: ./data.jsonl, ./data.parquet, ./data.txt",
        ) from error


def string_columns(hub: HubName) -> dict[str, bool]:
    """Column name -> whether it holds strings."""
    features = load_hub(hub).features
    return {name: getattr(feature, "dtype", None) in ("string", "large_string") for name, feature in features.items()}


def hub_fingerprint(hub: HubName) -> str:
    """What `datasets` calls the content of the split: it changes with the files and with every transform."""
    return str(load_hub(hub)._fingerprint)


def read_rows(hub: HubName, start: int, stop: int, names: list[str | None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, record)` of rows [start, stop), with the columns `names` that are not None."""
    wanted = [name for name in names if name is not None]
    rows = load_hub(hub).select_columns(wanted)
    for first in range(start, stop, _ROWS_PER_READ):
        block = rows[first : min(first + _ROWS_PER_READ, stop)]
        for offset, values in enumerate(zip(*(block[name] for name in wanted))):
            yield f"{hub.name} row {first + offset:,}", dict(zip(wanted, values))
