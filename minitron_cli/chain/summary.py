"""What a run has made: its models, their lineage and their evaluation, as family.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minitron_cli.chain.state import load
from minitron_cli.checkpoint.atomic import atomic_file
from minitron_cli.checkpoint.describe import describe
from minitron_cli.checkpoint.provenance import read_manifest, versions
from minitron_cli.checkpoint.reader import load_config, load_whole_config, open_checkpoint
from minitron_cli.checkpoint.wrapping import TEXT, TIED
from minitron_cli.errors import MinitronError
from minitron_cli.families import wrapper_of
from minitron_cli.spec.recipe import FAMILY, MAKES_MODELS, VERBS, Recipe, Step, command_line, declared_in, locate


def write_summary(recipe: Recipe, directory: Path) -> dict[str, Any]:
    """Collect what every finished step made and write DIRECTORY/family.json; returns the same object."""
    records = load(directory)
    finished = [step for step in recipe.steps if step.name in records and records[step.name].finished]
    results = [_results(directory / step.output) for step in finished if step.verb == "eval"]
    family = {
        "recipe": recipe.name,
        "about": recipe.about,
        "models": [_model(recipe, step, directory, results) for step in finished if step.verb in MAKES_MODELS],
        "evaluations": {step.name: step.output for step in finished if step.verb == "eval"},
        "steps": [
            {"step": step.name, "seconds": records[step.name].seconds, "digest": records[step.name].digest,
             "forecast": records[step.name].forecast, "took": records[step.name].took,
             "command": ["minitron", *command_line(recipe, step, directory)]}
            for step in finished
        ],
        "versions": versions(),
    }  # fmt: skip
    with atomic_file(directory / FAMILY) as temporary:
        temporary.write_text(json.dumps(family, indent=2) + "\n")
    return family


def _model(recipe: Recipe, step: Step, directory: Path, results: list[Mapping[str, Any]]) -> dict[str, Any]:
    path = directory / step.output
    facts = describe(open_checkpoint(path), context=0)
    manifest = read_manifest(path) or {}
    positional = VERBS[step.verb].positional or ""
    return {
        "name": step.name,
        "verb": step.verb,
        "path": step.output,
        "parent": step.inputs[positional][0],
        "teachers": list(step.inputs.get("teacher", ())),
        "parameters": facts["parameters"],
        "non_embedding_parameters": facts["non_embedding_parameters"],
        "shape": facts["shape"],
        "kv_bytes_per_token": facts["kv_bytes_per_token"],
        "state_bytes": facts["state_bytes"],
        "training": manifest.get("training"),
        "evaluation": _evaluation(locate(recipe, step.name, directory), results),
    }


def _results(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise MinitronError(f"{file} is not valid JSON: {error}", "evaluate again") from error


def _evaluation(path: str, results: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of the model at `path`; later results replace earlier ones."""
    found: dict[str, Any] = {}
    for result in results:
        for model in result["models"]:
            if Path(model["path"]) == Path(path):
                found.update({key: value for key, value in model.items() if key != "path"})
    return found or None


def summary_table(family: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The family as a table: columns and rows."""
    rows = []
    for model in family["models"]:
        evaluation = model["evaluation"] or {}
        rows.append([
            model["name"], model["verb"], f"{model['parameters']:,}",
            _number(evaluation.get("loss"), ".3f"), _number(evaluation.get("accuracy"), ".1%"),
            _number(evaluation.get("tokens_per_second"), ",.0f"),
        ])  # fmt: skip
    return ["model", "made by", "parameters", "validation loss", "task accuracy", "tokens/s"], rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def known_configs(recipe: Recipe, directory: Path) -> dict[str, dict[str, Any]]:
    """Config dictionaries of references that exist on disk, for the estimate."""
    references = {ref for step in recipe.steps for ref in step.needs()}
    found = {}
    for reference in references:
        if (given := declared_in(reference)) is not None and given[0] not in recipe.given:
            continue
        path = Path(locate(recipe, reference, directory))
        if (path / "config.json").is_file():
            found[reference] = _config(path)
    return found


def _config(path: Path) -> dict[str, Any]:
    """All of config.json, with tie_word_embeddings as the weight files show it."""
    whole, tied = load_whole_config(path), load_config(path).get(TIED)
    if tied is None or wrapper_of(str(whole["model_type"])) is None:
        return whole
    text = {TEXT: {**whole[TEXT], TIED: tied}} if isinstance(whole.get(TEXT), dict) else {}
    return {**whole, **text, TIED: tied}
