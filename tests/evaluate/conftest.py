"""A little world to evaluate on: documents of two domains, their token file, a task beside its YAML."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile

QUESTIONS = 24


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of unequal length in two domains; one domain's text has two bytes a character."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(40):
        letters = "abcdefgh " if index % 3 else "\u00e9\u00fc\u00f1 "
        text = "".join(rng.choice(list(letters), size=int(rng.integers(5, 120))))
        rows.append({"text": text, "domain": "ascii" if index % 3 else "accents"})
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def token_file(corpus: Path, toy, tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    cache = tmp_path_factory.mktemp("tokens")
    return token_files(parse_sources([str(corpus)]), toy("llama"), cache_dir=cache)[0]


def write_task(directory: Path, name: str, seed: int = 0, **changes: object) -> None:
    """A four-way multiple-choice task whose data file lies beside its YAML."""
    rng = np.random.default_rng(seed)
    rows = [
        {"context": "".join(rng.choice(list("abcdefgh"), 9)), "choices": list("abcd"), "gold": int(rng.integers(4))}
        for _ in range(QUESTIONS)
    ]
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "{{gold}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
        **changes,
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="session")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, and the group `letters` of both."""
    directory = tmp_path_factory.mktemp("tasks")
    write_task(directory, "letters_one", 1)
    write_task(directory, "letters_two", 2)
    group = {
        "group": "letters",
        "task": ["letters_one", "letters_two"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    (directory / "letters.yaml").write_text(yaml.safe_dump(group))
    return directory
