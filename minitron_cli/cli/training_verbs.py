"""What `distill` and `train` do with what was typed: run it, here or in several processes, and show what came of it."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.cli.common import bytes_text, command_line, count_text, emit, is_first_process, require_model, say
from minitron_cli.errors import MinitronError
from minitron_cli.spec.recipe import VERBS

if TYPE_CHECKING:
    from minitron_cli.training.run import Outcome

# What the command line has beyond the fields of `Options`.
CONTROL = ("model", "output", "nproc", "preset", "export_step", "preflight", "overwrite", "dry_run", "as_json")
RECORDING = ("record_teacher", "record")
# Options that decide which windows of the data a run reads: a recording is of no others.
_OF_WINDOWS = (
    *("data", "separator", "text_field", "phases", "steps", "tokens", "batch", "seq_len", "seed", "temperature"),
)


def launch(verb: str, given: Mapping[str, Any]) -> int:
    """Carry out a training command from its parameters by name; returns the exit code."""
    from minitron_cli.chain.grading import grade_of

    control, options = _split(verb, given)
    if verb == "shear":
        from minitron_cli.chain.shear import complete

        options = complete(options)
    if control["dry_run"]:
        from minitron_cli.training.run import rehearse

        facts, check = rehearse(
            options, control["nproc"], overwrite=control["overwrite"], preflight=control["preflight"]
        )
        emit(facts, control["as_json"], lambda: _show_plan(facts))
        grade_of(options)
        check()
        return 0
    if control["export_step"] is not None:
        return _export(options, control)
    from minitron_cli.training.launch import is_worker, launch_workers, reporting

    if control["nproc"] > 1 and not is_worker():
        from minitron_cli.training.prepare import prepare, world_of

        # What is wrong with the request is said once, here, and the data is tokenised before any worker waits for it.
        prepare(options, world_of(options, control["nproc"]))
        grade_of(options)
        assert sys.argv[1:2] == [verb], "several processes are started from a command line, not from Python"
        return launch_workers(control["nproc"], sys.argv[1:])
    with reporting():
        return _run(options, control)


def record(given: Mapping[str, Any], directory: Path, what: str = "top-k") -> int:
    """Carry out `distill --record-teacher DIR --record WHAT`; returns the exit code."""
    from minitron_cli.training.cached_logits.record import plan_recording, record_teacher
    from minitron_cli.training.launch import is_worker, launch_workers, reporting
    from minitron_cli.training.prepare import world_of

    control, options = _split("distill", given)
    if control["dry_run"]:
        plan = plan_recording(options, directory, what)
        planned = {"output": str(directory), "windows": plan.num_windows, "bytes": plan.num_bytes}
        emit(planned, control["as_json"], lambda: print(f"would record {plan} in {directory}"))
        return 0
    if control["nproc"] > 1 and not is_worker():
        world_of(options, control["nproc"])
        plan_recording(options, directory, what)
        return launch_workers(control["nproc"], sys.argv[1:])
    with reporting():
        found = record_teacher(options, directory, what, say)
    facts = {"output": str(found.path), "tokens": found.tokens, "bytes": found.bytes, "finished": not found.stopped_by}
    if is_first_process():
        emit(facts, control["as_json"], lambda: _show_recorded(facts, options))
    return found.stopped_by


def _show_recorded(facts: Mapping[str, Any], options: Any) -> None:
    each = f"{facts['bytes'] / max(1, facts['tokens']):.0f} bytes a token"
    print(f"{facts['output']}: {count_text(facts['tokens'])} tokens recorded, {bytes_text(facts['bytes'])}, {each}")
    if facts["finished"]:
        print("next:", command_line("distill", options.student, "--teacher", facts["output"], *_windows_of(options)))
    else:
        print("next: type the same line again, it goes on from there")


def _windows_of(options: Any) -> list[str]:
    """The flags that decide which windows a run reads and how, where they are not the defaults."""
    from minitron_cli.training.options import flag

    words = [] if options.cross_doc else ["--no-cross-doc"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _OF_WINDOWS and value != field.default:
            name = flag(field.name.replace("phases", "phase"))
            words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (name, str(one))]
    return words


def _split(verb: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """What was typed, as what controls a run and as the options of its training."""
    from minitron_cli.training.presets import resolve

    control = {name: given[name] for name in CONTROL}
    if control["nproc"] < 1:
        raise MinitronError(f"--nproc must be at least 1; got {control['nproc']}", "give the number of GPUs to use")
    model = require_model(control["model"], verb)
    if not given["data"]:
        raise MinitronError(
            f"`minitron {verb}` needs --data", "a .jsonl, .parquet or .txt file, a token directory or a datasets name"
        )
    output = control["output"] or Path(f"{Path(model).name}-{VERBS[verb].made}")
    plain = {
        name: tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value
        for name, value in given.items()
        if name not in CONTROL
    }
    return control, resolve({"verb": verb, "student": model, "output": str(output), **plain}, control["preset"])


def _run(options: Any, control: Mapping[str, Any]) -> int:
    from minitron_cli.chain.grading import grade_of
    from minitron_cli.chain.shear import trim
    from minitron_cli.training.run import train

    outcome = train(
        options, overwrite=control["overwrite"], preflight=control["preflight"], say=say,
        trim=trim if options.verb == "shear" else None, grade=grade_of(options),
    )  # fmt: skip
    if is_first_process():
        emit(facts_of(outcome), control["as_json"], lambda: _show(outcome, control["overwrite"]))
    return outcome.stopped_by


def _export(options: Any, control: Mapping[str, Any]) -> int:
    from minitron_cli.training.export_run import export_step

    step = control["export_step"]
    directory = export_step(options, step, overwrite=control["overwrite"])
    emit({"output": str(directory)}, control["as_json"], lambda: print(f"{directory}: the model after step {step}"))
    return 0


def _show_plan(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        if value == []:
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in parts:
            is_bytes = "memory" in name or name in ("disk", "mirror")
            shown = bytes_text(number) if is_bytes else _fact_text(number)
            print(f"{' '.join((name, part)):>32}  {shown}")


def _fact_text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_fact_text, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def facts_of(outcome: "Outcome") -> dict[str, Any]:
    """The closing summary as one JSON object."""
    progress = outcome.progress
    return {
        "output": str(outcome.output),
        "finished": not outcome.stopped_by,
        "steps": progress.step,
        "tokens": progress.tokens,
        "flops": progress.flops,
        "seconds": round(progress.seconds, 2),
        "skipped": progress.skipped,
        "loss": {"first": progress.first, "last": progress.last},
        "eval": {"before": outcome.before, "after": outcome.after},
    }


def _show(outcome: "Outcome", overwrite: bool) -> None:
    progress, options = outcome.progress, outcome.options
    if outcome.stopped_by:
        print(f"stopped after step {progress.step} of {options.steps}; checkpoint in {outcome.output / 'run'}")
        # With --overwrite, a run that replaces nothing would be replaced itself.
        again = "the same line without --overwrite" if overwrite and outcome.output == Path(options.output) else ""
        print(f"next: type {again or 'the same line again'}, it goes on from there")
        return
    if outcome.was_done:
        print(f"{outcome.output} is finished already; nothing to do (--overwrite starts again)")
    pairs = _pairs(outcome)
    width = max([16, *(len(name) for name, _, _ in pairs)])
    for name, before, after in pairs:
        print(f"{name:>{width}}  {before:z.4f} -> {after:z.4f}")
    rate = progress.tokens / progress.seconds if progress.seconds else 0.0
    print(
        f"{progress.step} steps, {count_text(progress.tokens)} tokens, {progress.flops:.3g} FLOPs, {rate:,.0f} tokens/s"
    )
    size = sum(f.stat().st_size for f in outcome.output.glob("*.safetensors"))
    print(f"{outcome.output}: {bytes_text(size)} of weights, loads with from_pretrained")
    print(f"next: {_next(outcome)}")


def _next(outcome: "Outcome") -> str:
    """The line that compares the result with what it learned from, or came from: never on the training data."""
    from minitron_cli.training.defaults import split_share

    options = outcome.options
    teachers = [model for model, _ in map(split_share, options.teacher) if (Path(model) / "config.json").is_file()]
    before = teachers or ([] if options.from_scratch else [options.student])
    line = ["eval", *before, outcome.output]
    if not options.eval_data:
        return command_line(*line, "--suite", "minitron")
    data = [word for source in options.eval_data for word in ("--data", source)]
    separator = [] if options.separator == "auto" else ["--separator", options.separator]
    return command_line(*line, *data, *separator)


def _pairs(outcome: "Outcome") -> list[tuple[str, float, float]]:
    """What there is of before and after: the evaluations where there were any, else the training loss."""
    if outcome.before and outcome.after:
        names = [n for n in outcome.after if n.startswith("eval_") and n in outcome.before and "stderr/" not in n]
        return [(n.removeprefix("eval_"), outcome.before[n], outcome.after[n]) for n in names]
    first, last = outcome.progress.first or {}, outcome.progress.last or {}
    return [(f"train {n}", first[n], last[n]) for n in last if n in first and n != "loss"]
