"""One small file per model family; `FAMILIES` is the whole list, in plain sight."""

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.families.llama import LLAMA
from minitron_cli.families.qwen import QWEN2, QWEN3
from minitron_cli.spec.family import Family

FAMILIES: tuple[Family, ...] = (LLAMA, QWEN2, QWEN3)


def known_model_types() -> tuple[str, ...]:
    """Every model_type that some family's table describes, sorted."""
    return tuple(sorted(t for f in FAMILIES for t in f.model_types))


def family_of(model_type: str) -> Family:
    """The family of a config's model_type, or a MinitronError that says which are known."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise MinitronError(
        f"unknown model_type {model_type!r} ({near_matches(model_type, known_model_types())})",
        f"supported: {', '.join(known_model_types())}; a new family is one table in minitron_cli/families",
    )
