"""What the code-running task files need: `code_eval` executes the programs, each in a process with a time limit."""

import os
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _code_eval() -> Any:
    """Loaded when the first program is scored, not when a task is listed; by then the user has confirmed."""
    import evaluate

    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    return evaluate.load("code_eval")


def complete_prompt(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Each sample as a whole program: the prompt and what the model wrote after it."""
    return [[doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs)]


def mean_pass_at_1(references: list[str], predictions: list[list[str]]) -> float:
    """Share of a problem's samples that pass its tests: references [tests], predictions [[program, ...]]."""
    return float(_code_eval().compute(references=references, predictions=predictions, k=[1])[0]["pass@1"])


def pass_at_1(references: str | list[str], predictions: list[Any]) -> float:
    """1 where the one sample passes, else 0."""
    tests = [references] if isinstance(references, str) else references
    programs = [[text] if isinstance(text, str) else text for text in predictions]
    return float(_code_eval().compute(references=tests, predictions=programs, k=[1])[0]["pass@1"])
