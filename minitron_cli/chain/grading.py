"""Functions that grade a model in memory on lm-eval tasks: a student while it trains (`--eval-tasks`), or the source
without some of its layers (`--depth-task`). The tasks are checked when a function is made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.importance.curves import Judge
from minitron_cli.importance.options import Options as Measured
from minitron_cli.training.grading import Grade, Score, Subject
from minitron_cli.training.options import Options


def grade_of(options: Options) -> Grade | None:
    """The function for `--eval-tasks`, None without; a task that does not exist, or lacks its data, is refused."""
    if options.eval_tasks is None:
        return None
    from minitron_cli.evaluate.harness import make_lm, run_request, without_unsafe
    from minitron_cli.evaluate.model import LoadedModel
    from minitron_cli.evaluate.options import Request
    from minitron_cli.evaluate.shared import answer, sharing
    from minitron_cli.evaluate.tasks import find_tasks
    from minitron_cli.hf.devices import dtype_name
    from minitron_cli.hf.load import load_tokenizer

    names = [name.strip() for name in options.eval_tasks.split(",") if name.strip()]
    tasks = find_tasks(names, [Path(directory) for directory in options.include])
    requests = without_unsafe([Request(name, limit=options.task_limit) for name in names], names, tasks)

    def grade(subject: Subject) -> Sequence[Score]:
        tokenizer = load_tokenizer(subject.tokenizer, subject.trust_remote_code)
        dtype = dtype_name(subject.dtype)
        loaded = LoadedModel("student", subject.tokenizer, subject.model, tokenizer, subject.device, dtype)
        lm = make_lm(loaded)
        if not subject.world.first:
            answer(lm, subject.world)
            return ()
        with sharing(lm, subject.world):
            scores = [score for request in requests for score in run_request(lm, tasks, request)]
        return [Score(f"{s.task}/{s.key}", s.value, s.stderr, s.higher_is_better) for s in scores]

    return grade


def judge_of(model: Path, options: Measured, include: Sequence[Path] = (), limit: int | None = None) -> Judge | None:
    """The function for `--depth-task`, which gives the first metric of the task; None without a task."""
    if not (task := options.depth_task):
        return None
    from minitron_cli.evaluate.harness import make_lm, run_request
    from minitron_cli.evaluate.model import LoadedModel
    from minitron_cli.evaluate.options import Request
    from minitron_cli.evaluate.tasks import find_tasks
    from minitron_cli.hf.devices import dtype_name
    from minitron_cli.hf.load import load_tokenizer

    tasks = find_tasks([task], list(include))
    tokenizer = load_tokenizer(model, options.trust_remote_code)
    request = Request(task, limit=limit)

    def score(loaded: Any, device: Any) -> float:
        ready = LoadedModel(model.name, model, loaded, tokenizer, device, dtype_name(loaded.dtype))
        first = run_request(make_lm(ready), tasks, request)[0]
        return first.value if first.higher_is_better else -first.value

    return Judge(task, f"{tasks.identity(task)} limit {limit}", score)
