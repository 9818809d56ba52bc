"""The toy world's lm-eval tasks: one multiple-choice task per skill, and the group of them all.

The data file of a task is named relative to its YAML, so that the directory can be moved; `minitron eval` resolves it.
"""

import random
from pathlib import Path

import yaml

from minitron_cli.toy.corpus import write_jsonl
from minitron_cli.toy.domains import Document, Question, World, arithmetic, brackets, recall, story

GROUP = "toy"
SKILLS = ("facts", "story", "arithmetic", "brackets", "recall")


def task_name(skill: str) -> str:
    return f"{GROUP}_{skill}"


def _document(skill: str, rng: random.Random, world: World) -> Document:
    match skill:
        case "facts" | "story":
            return story(rng, world)
        case "arithmetic":
            return arithmetic(rng, world, held_out=True)
        case "brackets":
            return brackets(rng, world)
        case _:
            return recall(rng, world)


def questions(skill: str, world: World, seed: int, count: int) -> list[Question]:
    """`count` questions of one skill, each from a document of its own that is in no corpus split."""
    rng = random.Random(f"task:{skill}:{seed}")
    found: list[Question] = []
    while len(found) < count:
        asked = [q for q in _document(skill, rng, world).questions if q.skill == skill]
        if asked:
            found.append(rng.choice(asked))
    return found


def write_tasks(directory: Path, world: World, seed: int, count: int) -> list[str]:
    """Write `toy_<skill>.yaml` and its data for every skill, and the group `toy`; returns the names of the tasks."""
    names = [task_name(skill) for skill in SKILLS]
    for skill, name in zip(SKILLS, names, strict=True):
        rows = questions(skill, world, seed, count)
        write_jsonl(
            directory / f"{name}.jsonl",
            [{"context": q.context, "choices": list(q.choices), "gold": q.gold} for q in rows],
        )
        _write_yaml(directory / f"{name}.yaml", _task(name))
    group: dict[str, object] = {
        "group": GROUP,
        "task": names,
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    _write_yaml(directory / f"{GROUP}.yaml", group)
    return names


def _task(name: str) -> dict[str, object]:
    """A choice begins with the space that the text has before it, so the delimiter is empty."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}},
        "validation_split": "validation",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _write_yaml(path: Path, content: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
