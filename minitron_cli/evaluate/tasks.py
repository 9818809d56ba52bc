"""Finding lm-eval tasks: the harness's own, ours, and those of `--include` directories.

In an included YAML a data file may be named relative to the YAML; what is not found there is left to the harness, which
takes it relative to the current directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.checkpoint.provenance import file_digest
from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.evaluate.offline import go_offline, hub_is_reachable

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

OWN_TASKS = Path(__file__).parent / "task_files"
# Builders of `datasets` that read local files; any other dataset_path is a name on the hub or a directory.
_LOCAL_BUILDERS = ("json", "csv", "parquet", "text", "arrow", "xml")


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """A harness's task manager, and the identity of everything it would run."""

    manager: TaskManager
    index: dict[str, Any]
    homes: dict[str, Path]  # the directory of each one's YAML

    def leaves(self, name: str) -> tuple[str, ...]:
        """The tasks that `name` (a task, group or tag) names, each once, in order."""
        return tuple(dict.fromkeys(self._leaves(name)))

    def _leaves(self, name: str) -> Iterator[str]:
        entry = self.index[name]
        children = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
        if entry.kind.name == "TAG":
            children = sorted(entry.tags)
        if children is None:
            yield name
            return
        for child in children:
            child_name = child if isinstance(child, str) else child.get("task", child.get("group"))
            if isinstance(child_name, str) and child_name in self.index:
                yield from self._leaves(child_name)

    def metrics(self, name: str) -> tuple[str, ...] | None:
        """The metrics that the YAML of a task lists, alone and with each filter; None where it lists none."""
        config = self.index[name].cfg or {}
        listed = [entry["metric"] for entry in config.get("metric_list") or []]
        filters = [entry["name"] for entry in config.get("filter_list") or []]
        if self.leaves(name) != (name,) or not listed or not all(isinstance(metric, str) for metric in listed):
            return None
        return (*listed, *(f"{metric},{each}" for metric in listed for each in filters))

    def identity(self, name: str) -> str:
        """A digest of the configs behind `name`, their code and the local data they read: it changes when a task does.

        Where the files are does not count.
        """
        parts = []
        for leaf in (name, *self.leaves(name)):
            config, home = dict(self.index[leaf].cfg or {}), self.homes.get(leaf)
            data = _data_files(config)
            files = [Path(file) for file in _flat(data) if Path(file).is_file()]
            files += sorted(home.glob("*.py")) if home else []
            if data:
                config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": None}
            text = json.dumps(config, sort_keys=True, default=_stable)
            parts.append([leaf, text.replace(str(home), "") if home else text, [file_digest(file) for file in files]])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_harness() -> None:
    """lm-eval, imported now, or the error that says how to get it; its log is kept to errors."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MinitronError("evaluation tasks need lm-eval, which is not installed", "pip install lm-eval") from error
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def find_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> Tasks:
    """Check that every one of `names` exists and that its data is within reach; nothing is downloaded yet."""
    require_harness()
    for directory in include:
        if not directory.is_dir():
            raise MinitronError(f"--include {directory} is not a directory", "give the directory of the task YAMLs")
    paths = [OWN_TASKS, *include]
    tasks = _build(paths, include_defaults=False)
    if any(name not in tasks.index for name in names):
        tasks = _build(paths, include_defaults=True)  # reading the harness's thousands of YAMLs takes seconds
    unknown = [name for name in names if name not in tasks.index]
    if unknown:
        known = sorted(tasks.index)
        near = {name: near_matches(name, known) for name in unknown}
        told = {name: text for name, text in near.items() if len(known) < 40 or text.startswith("did you mean")}
        raise MinitronError(
            "; ".join([f"no such task: {', '.join(unknown)}", *_unreadable(include)]),
            "; ".join(f"{name}: {text}" for name, text in told.items())
            or "`lm-eval ls tasks` lists all; add --include DIR for your own",
        )
    _check_data(tasks, names)
    return tasks


def _unreadable(include: Sequence[Path]) -> list[str]:
    """What is wrong with the YAMLs that the harness leaves out in silence, one line each."""
    from lm_eval.tasks._yaml_loader import load_yaml

    problems = []
    for file in sorted(file for directory in include for file in directory.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False, recursive=True)
        except Exception as error:  # noqa: BLE001 - a YAML can include others, and fail in any way that they can
            problems.append(f"{file} cannot be read ({' '.join(str(error).split())})")
    return problems


def _build(paths: list[Path], include_defaults: bool) -> Tasks:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(path) for path in paths], include_defaults=include_defaults)
    index = manager.task_index
    homes = {name: entry.yaml_path.resolve().parent for name, entry in index.items() if entry.yaml_path}
    for name, entry in list(index.items()):
        if entry.yaml_path and any(path.resolve() in entry.yaml_path.resolve().parents for path in paths):
            index[name] = _beside_yaml(entry)
    return Tasks(manager, index, homes)


def _beside_yaml(entry: Any) -> Any:
    """The entry with data files beside its YAML named in full; others are left as they are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = _data_files(entry.cfg or {})
    here = entry.yaml_path.resolve().parent
    if not any((here / file).is_file() and not Path(file).is_absolute() for file in _flat(found)):
        return entry
    config = load_yaml(entry.yaml_path, resolve_func=True)
    config["dataset_kwargs"] = {**config["dataset_kwargs"], "data_files": _absolute(found, here)}
    return dataclasses.replace(entry, yaml_path=None, cfg=config)


def _data_files(config: dict[str, Any]) -> Any:
    return (config.get("dataset_kwargs") or {}).get("data_files")


def _absolute(files: Any, here: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, here) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, here) for value in files]
    return str(here / files) if (here / files).is_file() else files


def _flat(files: Any) -> list[str]:
    if isinstance(files, dict):
        return [name for value in files.values() for name in _flat(value)]
    if isinstance(files, list):
        return [name for value in files for name in _flat(value)]
    return [files] if isinstance(files, str) else []


def _check_data(tasks: Tasks, names: Sequence[str]) -> None:
    """Local files must be there; a data set by name needs the hub, or to be in the cache of an earlier run."""
    missing: list[str] = []
    remote: dict[str, str] = {}
    for leaf in dict.fromkeys(leaf for name in names for leaf in tasks.leaves(name)):
        config = tasks.index[leaf].cfg or {}
        path = config.get("dataset_path")
        if path in _LOCAL_BUILDERS:
            files = _flat(_data_files(config))
            missing += [f"{leaf} reads {file}" for file in files if "://" not in file and not Path(file).is_file()]
        elif path and not Path(path).exists():
            remote[leaf] = path
    if missing:
        raise MinitronError(
            f"data of a task is missing: {'; '.join(missing)}",
            "a data file is looked for beside the task's YAML, then from the current directory",
        )
    if remote and not hub_is_reachable():
        go_offline()
        _require_cached(remote)


def _require_cached(remote: dict[str, str]) -> None:
    """With no hub, a data set must be in the cache; every one that does not is named."""
    from datasets import config

    absent = {
        leaf: path
        for leaf, path in remote.items()
        if not (Path(config.HF_DATASETS_CACHE) / path.replace("/", "___").lower()).is_dir()
        and not (Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")).is_dir()
    }
    if absent:
        shown = ", ".join(f"{leaf} ({path})" for leaf, path in list(absent.items())[:5])
        raise MinitronError(
            f"the hub cannot be reached, and {len(absent)} task(s) need a data set from it: {shown}",
            "evaluate where there is a network (or with the data sets in the cache), or use local tasks: --include DIR",
        )


def _stable(value: Any) -> str:
    """A function of a task's YAML, named; anything else by its type."""
    return getattr(value, "__qualname__", type(value).__qualname__)
