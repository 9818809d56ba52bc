"""`minitron inspect`: what a checkpoint is, from its config and, where there are weights, their headers."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import argument, bytes_text, count_text, emit, examples, option, require_model, table
from minitron_cli.errors import MinitronError

NAME = "inspect"
EXAMPLES = examples(
    "minitron inspect runs/small --json | jq .parameters",
    "minitron inspect Llama-3.2-1B-v65536 --source meta-llama/Llama-3.2-1B --data corpus/",
)


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    context: Annotated[int, option("--context", help="tokens of context for the FLOPs figure", min=1)] = 4096,
    servable: Annotated[bool, option("--servable", help="also what serving engines require of its sizes")] = False,
    data: Annotated[list[str] | None, option("--data", help="text whose tokens are counted, by domain")] = None,
    source: Annotated[
        Path | None, option("--source", help="model whose vocabulary was cut: compare tokens of --data")
    ] = None,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Show what a checkpoint is, and what can be pruned. Family, shape, axes, parameters, KV bytes, FLOPs per token."""
    from minitron_cli.checkpoint.architecture import architecture_of
    from minitron_cli.checkpoint.describe import describe
    from minitron_cli.checkpoint.quantised import method_of
    from minitron_cli.checkpoint.reader import has_weights, load_config, open_checkpoint, resolve_model
    from minitron_cli.checkpoint.servable import servable_model

    name = require_model(model, NAME)
    if source is not None and not data:
        raise MinitronError(
            "--source is what the spelling of text is compared with, and there is none", "add --data TEXT"
        )
    path = resolve_model(name, ["config.json"])  # of a hub model no weights are fetched to be counted
    config = load_config(path)
    plain = "bfloat16" if method_of(config) else None  # looking at it takes no flag
    found = open_checkpoint(path, plain) if has_weights(path) else architecture_of(config)
    facts = describe(found, context) | {"model": name, "tokenizer": _tokenizer(path)}
    facts |= {"servable": servable_model(found)} if servable else {}
    facts |= {"text": _text(path, data, source)} if data else {}
    emit(facts, as_json, lambda: _show(facts))


def _text(model: Path, data: list[str], source: Path | None) -> dict[str, dict[str, Any]]:
    """How the tokenizer of a directory spells text, by domain (see `Respelling`)."""
    from minitron_cli.cli.progress import byte_progress
    from minitron_cli.data.vocabulary.counts import spelling

    with byte_progress("counting tokens") as progress:
        found = spelling(data, model, source, progress, os.cpu_count() or 1)
    shares = ("tokens_changed", "bytes_changed", "lengthening")
    return {
        domain: {key: value for key, value in asdict(one).items() if source or key not in shares}
        for domain, one in found.items()
    }


def _show_text(domains: dict[str, dict[str, Any]]) -> None:
    shares = {"tokens_changed": "tokens cut", "bytes_changed": "bytes they spelled", "lengthening": "longer by about"}
    compared = [key for key in shares if key in next(iter(domains.values()))]
    rows = [
        [name, count_text(one["tokens"]), f"{one['bytes'] / one['tokens']:.2f}", *(f"{one[k]:.2%}" for k in compared)]
        for name, one in domains.items()
    ]
    of = "tokens of the source" if compared else "tokens"
    table(["text", of, "bytes a token", *(shares[key] for key in compared)], rows)


def _tokenizer(model: Path) -> str | None:
    """What the tokenizer of a directory can spell, where its tokenizer.json is there and is one that spells."""
    from minitron_cli.data.tokenizer import tokenizer_json
    from minitron_cli.data.vocabulary.pieces import spells

    if not (model / "tokenizer.json").is_file():
        return None
    try:
        return spells(tokenizer_json(model))
    except (MinitronError, ValueError, KeyError, TypeError, AttributeError):
        return "tokenizer.json is damaged"


def _beside(facts: dict[str, Any] | None) -> list[list[str]]:
    """The row of what a model of text and images has beside its text model."""
    if facts is None:
        return []
    size = f"{facts['parameters']:,} parameters, {bytes_text(facts['bytes'])}; pruned models keep them"
    return [[f"beside the text model ({facts['model_type']})", size]]


def _show(facts: dict[str, Any]) -> None:
    table(
        [facts["model"], facts["family"]],
        [
            ["parameters", f"{facts['parameters']:,}"],
            ["non-embedding", f"{facts['non_embedding_parameters']:,}"],
            ["weights on disk", bytes_text(facts["bytes"]) + " by its config: none are here" * (not facts["weights"])],
            *[["layers", ", ".join(f"{n} {kind}" for kind, n in facts["layers"].items())]] * bool(facts["layers"]),
            *_beside(facts["beside"]),
            *[["tokenizer", facts["tokenizer"]]] * bool(facts["tokenizer"]),
            ["storage type", ", ".join(facts["dtypes"]) or "not known"],
            *[["quantised", f"{facts['quantised']}: prune and importance take it with --dequantize"]]
            * bool(facts["quantised"]),
            ["KV cache per token", bytes_text(facts["kv_bytes_per_token"])],
            *([["state per sequence", bytes_text(facts["state_bytes"])]] if facts["state_bytes"] else []),
            [f"forward FLOPs per token at {facts['context']}", count_text(facts["flops_per_token"])],
        ],
    )
    table(
        ["axis", "size", "flag", "can be pruned"],
        [[a["axis"], f"{a['size']:,}", a["flag"], a["note"]] for a in facts["axes"]],
    )
    for limit in facts["limits"]:
        print(f"not with this model: {limit}")
    if "text" in facts:
        _show_text(facts["text"])
    if "servable" in facts:
        _show_servable(facts["servable"], facts["shape"])


def _show_servable(facts: dict[str, Any], shape: dict[str, int]) -> None:
    from minitron_cli.spec.axes import WORDS
    from minitron_cli.spec.engines import READ, layers_text, rows_text

    def numbers(values: list[int]) -> str:
        return ", ".join(map(str, values)) or "none"

    axes = [axis for axis in shape if axis in facts["divided_by"] or axis in facts["multiples"]]
    found = {of: {axis: numbers(facts[of][axis]) for axis in facts[of]} for of in ("divided_by", "multiples")}
    table(
        ["to serve", "size", "divides by", "multiple of"],
        [[WORDS[a], f"{shape[a]:,}", *(of.get(a, "") for of in found.values())] for a in axes],
    )
    rows, head = rows_text(facts["k_quants_apart"]), facts["head_channels"]
    apart = head and f"{head['stated']}; hidden / heads is {head['hidden_over_heads']:g}"
    table(
        ["engines", "what they make of it"],
        [
            ["tensor parallel over", numbers(facts["tensor_parallel"])],
            ["layers", layers_text(facts["layers"])],
            ["output head", "tied to the embedding" if facts["tied"] else "of its own"],
            *([["channels a head", apart]] if apart else []),
            ["K-quants of GGUF", f"fall back to larger types in rows of {rows}" if rows else "for all matrices"],
            *([f"{name} ({READ[name]})", "; ".join(why) or "as it is"] for name, why in facts["engines"].items()),
        ],
    )
