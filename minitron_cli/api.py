"""The verbs as Python functions, for scripts and notebooks. Importing this module costs no torch.

    from minitron_cli.api import bench, distill, evaluate, importance, prune, search, shear, train

Options are keyword arguments named as the flags (`--kv-heads` is `kv_heads`), with the defaults and checks of the
command line: the fields of `importance.options.Options`, `prune.request.PruneRequest`, `training.options.Options`,
`evaluate.request.EvalRequest` and `evaluate.bench_request.BenchRequest`, and the arguments of
`search.flags.search_request`. Paths may be text or `Path`, counts numbers or text ("4B"), an option that can be
repeated one value or a list. A request that cannot be carried out raises `MinitronError`. `say` receives the lines that
the command line prints to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from minitron_cli.errors import MinitronError, near_matches

if TYPE_CHECKING:
    from minitron_cli.evaluate.request import Evaluation
    from minitron_cli.importance.run import Result as Scored
    from minitron_cli.prune.execute import PruneResult
    from minitron_cli.prune.request import Measurement
    from minitron_cli.search.execute import Searched
    from minitron_cli.training.run import Outcome as Trained

__all__ = ["MinitronError", "bench", "distill", "evaluate", "importance", "prune", "search", "shear", "train"]

Place = str | PathLike[str]
Say = Callable[[str], None]


def _quiet(text: str) -> None:
    pass


def importance(
    model: Place, *, output: Place, include: Sequence[Place] = (), task_limit: int | None = None, say: Say = _quiet,
    **options: Any,
) -> Scored:  # fmt: skip
    """Score every axis of `model` on calibration `data`, and write the scores file `output`."""
    from minitron_cli.chain.grading import judge_of
    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure

    asked = Options(**_typed(Options, options))
    judge = judge_of(resolve_model(Path(model)), asked, [Path(place) for place in include], task_limit)
    return measure(str(model), asked, Path(output), say=say, judge=judge)


def prune(model: Place, *, say: Say = _quiet, **options: Any) -> PruneResult:
    """Trim `model` to the sizes asked for; without `scores` they are measured first, on `data`."""
    from minitron_cli.prune.execute import prune as carry_out
    from minitron_cli.prune.request import PruneRequest

    def score(wanted: Measurement) -> None:
        importance(wanted.model, output=wanted.output, data=wanted.data, samples=wanted.samples, seq_len=wanted.seq_len,
                   second_moments=wanted.second_moments, dequantize=wanted.dequantize, say=say)  # fmt: skip

    return carry_out(PruneRequest(model=str(model), **_typed(PruneRequest, options)), score, say)


def shear(
    model: Place, *, output: Place, preset: str | None = None, overwrite: bool = False, preflight: bool = True,
    say: Say = _quiet, **options: Any,
) -> Trained:  # fmt: skip
    """Learn which units of `model` stay, together with its weights, and cut to the sizes asked for."""
    from minitron_cli.chain.shear import shear as carry_out
    from minitron_cli.training.options import Options, of_shear
    from minitron_cli.training.presets import resolve

    given = _typed(Options, of_shear(str(model), {"output": output, **options}))
    return carry_out(
        resolve({"verb": "shear", "student": str(model), **given}, preset),
        overwrite=overwrite, preflight=preflight, say=say,
    )  # fmt: skip


def distill(
    student: Place, *, teacher: Place | Sequence[Place], output: Place, preset: str | None = None,
    overwrite: bool = False, preflight: bool = True, say: Say = _quiet, **options: Any,
) -> Trained:  # fmt: skip
    """Train `student` to predict as `teacher` does, in this process; called again, it continues where it stopped."""
    given = {"teacher": teacher, "output": output, **options}
    return _trained("distill", student, given, preset, overwrite=overwrite, preflight=preflight, say=say)


def train(
    model: Place, *, output: Place, preset: str | None = None, overwrite: bool = False, preflight: bool = True,
    say: Say = _quiet, **options: Any,
) -> Trained:  # fmt: skip
    """Train `model` on text, as `distill` does without a teacher: teacher correction, continued or first training."""
    given = {"output": output, **options}
    return _trained("train", model, given, preset, overwrite=overwrite, preflight=preflight, say=say)


def _trained(verb: str, student: Place, options: Mapping[str, Any], preset: str | None, **control: Any) -> Trained:
    from minitron_cli.chain.grading import grade_of
    from minitron_cli.training.options import Options
    from minitron_cli.training.presets import resolve
    from minitron_cli.training.run import train as carry_out

    asked = resolve({"verb": verb, "student": str(student), **_typed(Options, options)}, preset)
    return carry_out(asked, signals=False, grade=grade_of(asked), **control)


def evaluate(models: Place | Sequence[Place], *, say: Say = _quiet, **options: Any) -> Evaluation:
    """Perplexity on `data` and lm-eval `tasks` of several models side by side; the first is the reference."""
    from minitron_cli.evaluate.request import EvalRequest
    from minitron_cli.evaluate.request import evaluate as carry_out

    return carry_out(EvalRequest(**_typed(EvalRequest, {"models": models, **options})), say)


def bench(models: Place | Sequence[Place], *, say: Say = _quiet, **options: Any) -> dict[str, Any]:
    """Time prefill and decoding of several models in the same rounds; the first is the reference."""
    from minitron_cli.evaluate.bench_request import BenchRequest
    from minitron_cli.evaluate.bench_request import bench as carry_out

    return carry_out(BenchRequest(**_typed(BenchRequest, {"models": models, **options})), say)


def search(model: Place, *, devices: str | None = None, say: Say = _quiet, **options: Any) -> Searched:
    """Rank every shape in a budget by quality, and write the ranking."""
    from minitron_cli.search.execute import search_and_write
    from minitron_cli.search.flags import search_request

    return search_and_write(search_request(str(model), **_typed(search_request, options)), devices, say)


def _typed(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the parameters of `target` take them, those that are None left out; unknown ones are an error."""
    from minitron_cli.spec.flags import typed_fields

    known = [name for name in get_type_hints(target) if name != "return"]
    if unknown := [name for name in options if name not in known]:
        raise MinitronError(f"unknown option {', '.join(map(repr, unknown))}", near_matches(unknown[0], known))
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return typed_fields(target, {name: value for name, value in given.items() if value is not None})
