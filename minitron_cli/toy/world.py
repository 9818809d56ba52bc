"""Make the whole toy world: corpus, tokenizer, tasks and the teacher's shape, in one directory.

DIR/corpus/train.jsonl, valid.jsonl     {"text", "domain"}
DIR/teacher-init/                       config and tokenizer, no weights: `minitron train ... --from-scratch`
DIR/tasks/                              lm-eval tasks, for `minitron eval --tasks toy --include DIR/tasks`
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_dir
from minitron_cli.checkpoint.provenance import write_manifest
from minitron_cli.toy import domains, teacher, tokenizer
from minitron_cli.toy.corpus import documents, write_jsonl
from minitron_cli.toy.tasks import write_tasks


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: characters of text per split, questions per task."""

    train_characters: int = 3_000_000
    valid_characters: int = 60_000
    questions: int = 200


def make_toy(directory: Path, seed: int, size: Size | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write the world of `seed` into `directory` (it appears whole or not at all); returns what was made."""
    size = size or Size()
    with atomic_dir(directory, overwrite) as temporary:
        made = _write(temporary, seed, size)
        write_manifest(temporary, verb="toy", options={"seed": seed, **asdict(size)}, inputs={}, made=made)
    return {"directory": str(directory), "seed": seed, **made}


def _write(directory: Path, seed: int, size: Size) -> dict[str, Any]:
    corpus, init, tasks = (directory / name for name in ("corpus", "teacher-init", "tasks"))
    for path in (corpus, init, tasks):
        path.mkdir()
    world = domains.make_world(seed)
    counts = {}
    train: list[tuple[str, str]] = []
    for split, characters in (("train", size.train_characters), ("valid", size.valid_characters)):
        docs = documents(world, seed, split, characters)
        write_jsonl(corpus / f"{split}.jsonl", [{"text": text, "domain": domain} for text, domain in docs])
        counts[split] = len(docs)
        train = train or docs
    vocab, ids = tokenizer.train_tokenizer((text for text, _ in train), init, teacher.CONTEXT)
    teacher.write_config(init, vocab, ids)
    names = write_tasks(tasks, world, seed, size.questions)
    return {"documents": counts, "vocab_size": vocab, "tasks": names, "questions": size.questions * len(names)}
