"""`minitron toy`: the small world that the README's main job runs on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minitron_cli.cli.common import command_line, emit, examples, option

NAME = "toy"
EXAMPLES = examples("minitron toy world", "minitron toy world --seed 7 --questions 500 --overwrite")


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="where to put the world")],
    seed: Annotated[int, option("--seed", help="another seed is another world: people, facts, texts")] = 0,
    questions: Annotated[int, option("--questions", help="questions per task", min=1)] = 200,
    overwrite: Annotated[bool, option("--overwrite", help="replace an earlier world in DIR")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="only say what would be made")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Make the toy world of the demo. A corpus of four domains, a tokenizer, tasks that grade them, a teacher to train.

    The same seed gives the same bytes.
    """
    from minitron_cli.checkpoint.atomic import check_output
    from minitron_cli.toy.tasks import SKILLS, task_name
    from minitron_cli.toy.world import Size, make_toy

    if dry_run:
        check_output(directory, overwrite)
        plan = {"directory": str(directory), "seed": seed, "tasks": [task_name(skill) for skill in SKILLS]}
        emit(plan, as_json, lambda: print(f"would make {directory} from seed {seed}: corpus, tasks, teacher-init"))
        return
    made = make_toy(directory, seed, Size(questions=questions), overwrite)
    emit(made, as_json, lambda: _show(made))


def _show(made: dict[str, Any]) -> None:
    directory = made["directory"]
    counts = made["documents"]
    print(f"corpus/     {counts['train']:,} documents to train on, {counts['valid']:,} to validate on")
    print(f"tasks/      {', '.join(made['tasks'])} ({made['questions']:,} questions)")
    print(f"teacher-init/  a config and a tokenizer of {made['vocab_size']} tokens, no weights")
    line = command_line(
        "train", f"{directory}/teacher-init", "--from-scratch", "--data", f"{directory}/corpus/train.jsonl",
        "-o", f"{directory}/teacher",
    )  # fmt: skip
    print(f"made {directory}; next: {line}")
