"""Three domains that are learned at different speeds, for the tests of a dynamic mix."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_cli.training.options import Options
from minitron_cli.training.reference import measure_source
from minitron_cli.training.reference_file import read_references, write_references
from tests.training.runs import options

WORDS = {
    "ones": ["one one one", " one one"],
    "few": ["red", " green", " blue", " and", " or"],
    "many": [f" {a}{b}" for a in "bcdfghklmnprst" for b in ("ab", "ek", "is", "op", "ut")],
}


def write_domains(place: Path, documents: int = 60) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out text of each domain, as files."""
    place.mkdir(exist_ok=True)
    files = []
    for split, count in (("train", documents), ("eval", 12)):
        for name, words in WORDS.items():
            rng = random.Random(f"{split} {name}")
            lines = [json.dumps({"text": "".join(rng.choices(words, k=rng.randint(20, 60)))}) for _ in range(count)]
            files.append(place / f"{name}_{split}.jsonl")
            files[-1].write_text("\n".join(lines) + "\n")
    paths = tuple(map(str, files))
    return paths[:3], paths[3:]


def reference_file(model: Path, eval_data: tuple[str, ...], file: Path, **changes: Any) -> Path:
    """The losses of a model, measured as `dynamic` measures its student's."""
    measure_source(
        str(model), eval_data, file, **{"seq_len": 32, "eval_windows": 4, "micro_batch": 2, "device": "cpu", **changes}
    )
    return file


def lowered(file: Path, by: tuple[float, ...]) -> None:
    """Write the references again, each lower than it was measured."""
    found = read_references(file)
    domains = tuple(replace(domain, loss=domain.loss - less) for domain, less in zip(found.domains, by))
    write_references(file, replace(found, domains=domains))


def dynamic(student: Path, place: Path, output: Path, teacher: Path | None = None, **changes: Any) -> Options:
    """A run of 12 steps whose mix is updated after every third; references lie below the student's losses as it starts,
    further for one domain than for another.
    """
    data, eval_data = write_domains(place)
    references = place / "references.json"
    if not references.exists():
        lowered(reference_file(student, eval_data, references), (0.3, 0.6, 1.2))
    given: dict[str, Any] = {
        **{"data": tuple(f"{path}:{weight}" for path, weight in zip(data, (0.5, 0.3, 0.2))), "eval_data": eval_data},
        **{"mix": "dynamic", "reference_losses": str(references), "mix_every": 3, "eval_every": 5, "eval_windows": 4},
        **changes,
    }
    return replace(options(student, Path(data[0]), output, teacher), **given)
