"""`minitron importance`: score every axis of a model on calibration data."""

from pathlib import Path
from typing import Annotated, Any

from minitron_cli.cli.common import argument, emit, examples, option, require_model, say, table

NAME = "importance"
EXAMPLES = examples(
    "minitron importance Llama-3.1-8B --data wikitext:wikitext-2-raw-v1:train -o scores.safetensors",
    "minitron importance runs/small --data stories.jsonl --separator bos --samples 512 --seq-len 128",
)


def command(
    model: Annotated[str | None, argument("MODEL", help="a model directory or a hub id")] = None,
    data: Annotated[list[str] | None, option("--data", help="calibration text, SOURCE[:WEIGHT]; repeatable")] = None,
    output: Annotated[
        Path | None, option("-o", "--output", help="scores file [default: MODEL.scores.safetensors]")
    ] = None,
    samples: Annotated[int, option("--samples", help="calibration samples")] = 1024,
    seq_len: Annotated[
        int | None, option("--seq-len", help="tokens a sample [default: the context, up to 4096]")
    ] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="samples at a time; changes no score")] = None,
    batch_agg: Annotated[str, option("--batch-agg", help="over samples: mean, l2 or var")] = "l2",
    seq_agg: Annotated[str, option("--seq-agg", help="over a sample's tokens: mean (of |x|), l2 or var")] = "mean",
    metric: Annotated[str, option("--metric", help="activation, wanda, magnitude or random")] = "activation",
    seed: Annotated[int, option("--seed", help="draws the samples (and the random metric)")] = 0,
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N")] = "auto",
    separator: Annotated[str, option("--separator", help="between documents: auto, bos, eos, bos+eos, none")] = "auto",
    text_field: Annotated[str | None, option("--text-field", help="column that holds the text")] = None,
    allow_fewer: Annotated[bool, option("--allow-fewer", help="go on with fewer samples than asked for")] = False,
    padded: Annotated[bool, option("--padded", help="one document a sample, padded and masked, not packed")] = False,
    force: Annotated[bool, option("--force", help="measure again and replace scores made otherwise")] = False,
    as_json: Annotated[bool, option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Score hidden channels, neurons, heads, layers and experts in one forward-only pass over calibration samples."""
    from minitron_cli.checkpoint.reader import resolve_model
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    path = resolve_model(require_model(model, NAME))
    output = output or Path(f"{path.resolve().name}.scores.safetensors")
    options = Options(
        data=tuple(data or ()), samples=samples, seq_len=seq_len, batch_size=batch_size, batch_agg=batch_agg,
        seq_agg=seq_agg, metric=metric, seed=seed, dtype=dtype, device=device, separator=separator,
        text_field=text_field, allow_fewer=allow_fewer, padded=padded, force=force,
    )  # fmt: skip
    result = run(path, options, output, say=say, show=_Progress())
    facts = _facts(result)
    emit(facts, as_json, lambda: _show(facts, path))


def measure(model: str, data: list[str], output: Path, *, samples: int = 1024, seq_len: int | None = None) -> None:
    """Measure with defaults, for verbs that need scores and were given data instead."""
    from minitron_cli.importance.options import Options
    from minitron_cli.importance.run import measure as run

    run(model, Options(data=tuple(data), samples=samples, seq_len=seq_len), output, say=say, show=_Progress())


class _Progress:
    """A line every few seconds on stderr: samples done, rate and time left."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, done: int, total: int, rate: float) -> None:
        import time

        now = time.monotonic()
        if now - self._shown >= 5.0:
            self._shown = now
            say(f"sample {done:,}/{total:,}  {rate:,.0f} tokens/s")


def _facts(result: Any) -> dict[str, Any]:
    provenance = result.scores.provenance
    return {
        "output": str(result.output),
        "made": result.made,
        "seconds": round(result.seconds, 3),
        "axes": {axis: list(array.shape) for axis, array in result.scores.values.items()},
        "provenance": dict(provenance),
    }


def _show(facts: dict[str, Any], model: Path) -> None:
    table(["axis", "scores"], [[axis, " x ".join(map(str, shape))] for axis, shape in facts["axes"].items()])
    print(f"{facts['output']}: {facts['made']} in {facts['seconds']:.1f} s")
    print(f"next: minitron prune {model} --target width --scores {facts['output']} --hidden N --ffn M -o OUT")
