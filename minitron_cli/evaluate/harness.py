"""Run lm-eval tasks on a loaded model through the harness's own Python API, and keep what a comparison needs.

Prompts, requests, metrics and aggregation are the harness's; equal settings give its figures to the digit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import numbers
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minitron_cli.errors import MinitronError, first_line
from minitron_cli.evaluate.model import LoadedModel, max_context
from minitron_cli.evaluate.options import Request
from minitron_cli.evaluate.tasks import Tasks
from minitron_cli.hf.parts import vocabulary_of

# Tokens x vocabulary of one batch of logits (float32): 128 Mi values are 512 MiB.
_LOGIT_BUDGET = 1 << 27
# A group of more tasks than this (mmlu has 57) shows its own score only.
_SHOWN_LEAVES = 10


# Metrics that are 1 where the likeliest choice is the right one.
_LIKELIEST = ("acc", "acc_norm", "acc_bytes")


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task: the harness's value and standard error, and each sample's value where it is a number."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool
    shots: int | None
    version: str
    num_samples: int
    samples: Mapping[str, float]  # "<leaf task>/<document>" -> value
    group: str | None = None  # the group that this task is part of, where the group was asked for
    chance: float | None = None  # what a uniform guess scores, where the task is multiple choice

    @property
    def key(self) -> str:
        """The name of the metric in a row, with its filter where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric},{self.filter}"


def make_lm(loaded: LoadedModel, batch_size: int | None = None) -> Any:
    """The harness's HFLM around a model that is in memory already; the batch size is found if it is not given."""
    from lm_eval.models.huggingface import HFLM

    with quiet():
        return HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            backend="causal",
            batch_size=batch_size or find_batch_size(loaded),
            max_batch_size=256,
            max_length=max_context(loaded),
            device=str(loaded.device),
        )


def find_batch_size(loaded: LoadedModel) -> int | str:
    """On a GPU the harness tries out what fits; on a CPU as much as the logits of full-length inputs leave room for."""
    if loaded.device.type == "cuda":
        return "auto"
    per_row = (max_context(loaded) or 2048) * vocabulary_of(loaded.model)
    return max(1, min(64, _LOGIT_BUDGET // per_row))


def run_request(lm: Any, tasks: Tasks, request: Request, *, unsafe_code: bool = False) -> list[Score]:
    """Evaluate one request; a group's score has the samples of all its tasks, which follow it if they are few."""
    import lm_eval

    if not unsafe_code:
        without_unsafe([request], [request.task], tasks)
    with quiet(), _task_errors(request):
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[request.task],
            num_fewshot=request.shots,
            limit=request.limit,
            gen_kwargs=dict(request.generation) if request.generation else None,
            task_manager=tasks.manager,
            bootstrap_iters=1000,
            log_samples=True,
            confirm_run_unsafe_code=unsafe_code,
        )
    assert found is not None, "only rank 0 evaluates"
    wanted = _named(tasks, request.task, found)
    scores = _select([score for name in wanted for score in _scores(name, tasks, found)], request)
    leaves = tasks.leaves(request.task)
    if wanted != [request.task] or leaves == (request.task,) or len(leaves) > _SHOWN_LEAVES:
        return scores
    keys = {score.key for score in scores}
    parts = [score for leaf in leaves for score in _scores(leaf, tasks, found) if score.key in keys]
    return scores + [replace(score, group=request.task) for score in parts]


@contextlib.contextmanager
def _task_errors(request: Request) -> Iterator[None]:
    """Turn errors of data, network and memory into a MinitronError that names the task."""
    import torch
    from datasets.exceptions import DatasetsError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MinitronError(f"{request.task} does not fit in memory", "give a smaller --batch-size") from error
    except (DatasetsError, OSError) as error:
        raise MinitronError(
            f"the data of {request.task} cannot be loaded: {first_line(error)}", "check the network"
        ) from error


def _named(tasks: Tasks, name: str, found: Mapping[str, Any]) -> list[str]:
    """The result rows of a request: its own; a group that aggregates nothing, and a tag, show their tasks instead."""
    own = found["results"].get(name, {})
    if any("," in key for key in own):
        return [name]
    return [leaf for leaf in tasks.leaves(name) if leaf in found["results"]]


def _scores(name: str, tasks: Tasks, found: Mapping[str, Any]) -> list[Score]:
    row = {**found["results"].get(name, {}), **found.get("groups", {}).get(name, {})}
    leaves = [leaf for leaf in tasks.leaves(name) if leaf in found["samples"]] or [name]
    better = found["higher_is_better"].get(name) or found["higher_is_better"].get(leaves[0]) or {}
    scores = []
    for key, value in row.items():
        metric, comma, chosen_filter = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
            continue
        stderr = row.get(f"{metric}_stderr,{chosen_filter}")
        scores.append(
            Score(
                task=name,
                metric=metric,
                filter=chosen_filter,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, numbers.Real) and not math.isnan(stderr) else None,
                higher_is_better=better.get(metric) is not False,
                shots=found["n-shot"].get(leaves[0]),
                version=str(found["versions"].get(name, found["versions"].get(leaves[0]))),
                num_samples=sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
                samples=_samples(metric, chosen_filter, leaves, found["samples"]),
                chance=_chance(metric, leaves, found),
            )
        )
    return scores


def _samples(metric: str, chosen_filter: str, leaves: list[str], logged: Mapping[str, Any]) -> dict[str, float]:
    """Each sample's own value; empty where the metric has none (corpus scores, pairs that are aggregated later)."""
    found: dict[str, float] = {}
    for leaf in leaves:
        for sample in logged[leaf]:
            value = sample.get(metric)
            if sample["filter"] != chosen_filter:
                continue
            if not isinstance(value, numbers.Real):
                return {}
            found[f"{leaf}/{sample['doc_id']}"] = float(value)
    return found


def _chance(metric: str, leaves: list[str], found: Mapping[str, Any]) -> float | None:
    """The mean over the samples of right choices / choices; None where the likeliest choice is not what is scored."""
    configs = [found["configs"].get(leaf, {}) for leaf in leaves]
    guessed = all(c.get("output_type") == "multiple_choice" and not c.get("process_results") for c in configs)
    if not guessed or metric not in _LIKELIEST:
        return None
    shares = [_guess(sample) for leaf in leaves for sample in found["samples"].get(leaf, ())]
    return sum(shares) / len(shares) if shares else None


def _guess(sample: Mapping[str, Any]) -> float:
    """How likely a uniform guess is right on one document; mutual information asks for every choice twice."""
    choices = len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)
    target = sample["target"]
    return (len(target) if isinstance(target, list) else 1) / choices


def _select(scores: list[Score], request: Request) -> list[Score]:
    if not request.metrics:
        return scores
    chosen = [score for wanted in request.metrics for score in scores if wanted in (score.key, score.metric)]
    if not chosen:
        raise MinitronError(
            f"{request.task} has no metric {', '.join(request.metrics)}",
            f"it has {', '.join(score.key for score in scores)}",
        )
    return chosen


def without_unsafe(requests: Sequence[Request], named: Sequence[str], tasks: Tasks) -> tuple[Request, ...]:
    """The requests that run no code of the model's. One that was `named` by the user is an error, not left out."""
    unsafe = [request.task for request in requests if _runs_code(tasks, request.task)]
    asked = [name for name in unsafe if name in named]
    if asked:
        raise MinitronError(
            f"{', '.join(asked)} runs code that the model writes",
            "add --confirm-run-unsafe-code where such code may run (a container, say), or leave the task out",
        )
    return tuple(request for request in requests if request.task not in unsafe)


def _runs_code(tasks: Tasks, name: str) -> bool:
    return any((tasks.index[leaf].cfg or {}).get("unsafe_code") for leaf in tasks.leaves(name))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """stdout is for data: what the harness prints is dropped, its log is kept to errors, and a progress bar is drawn
    on a terminal only. It does not collect versions. Everything is put back at the end.
    """
    from lm_eval import evaluator

    # It runs pip, git and the driver's tool for a version list, at every call: longer than a small model's task.
    # Outside a repository git complains, on the process's own stderr.
    unwanted = {"add_env_info": lambda storage: None, "get_git_commit_hash": lambda: None}
    originals = {name: getattr(evaluator, name) for name in unwanted}
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers", "evaluate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for name, nothing in unwanted.items():
        setattr(evaluator, name, nothing)
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with contextlib.redirect_stdout(io.StringIO()), bars:
            yield
    finally:
        for name, original in originals.items():
            setattr(evaluator, name, original)
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
