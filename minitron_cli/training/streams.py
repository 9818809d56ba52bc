"""Training on corpora that are never tokenised as a whole: the same rows interface over streams."""

from pathlib import Path

from minitron_cli.data.source import parse_sources
from minitron_cli.data.stream import RowStream, StreamOrder
from minitron_cli.data.tokenizer import load_tokenizer
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.inputs import Models, last_mix
from minitron_cli.training.options import Options
from minitron_cli.training.rows import Rows, Share, part_of, share_of
from minitron_cli.training.stretches import parse_phases


def check_streaming(options: Options, models: Models) -> None:
    """Refuse what needs to know the whole of the data."""
    faults = []
    if options.steps is None and options.tokens is None:
        faults.append("a stream has no end: say --steps or --tokens")
    if not options.cross_doc:
        faults.append("--no-cross-doc needs token files")
    if any(phase.seq_len not in (None, options.seq_len) for phase in parse_phases(options)):
        faults.append("phases with a length of their own need token files")
    if models.recording is not None or models.served is not None:
        faults.append("a recorded or served teacher needs token files")
    if faults:
        raise MinitronError(f"--stream: {'; '.join(faults)}", "or leave --stream out: the text is then tokenised once")


def open_streams(options: Options, models: Models, run: Path | None, rank: int) -> StreamOrder:
    """One stream per source; in a run directory each keeps the index by which a resumed run skips what it has read."""
    assert options.seq_len is not None
    sources, tokenizer = parse_sources(options.data), load_tokenizer(models.tokenizer)
    streams = tuple(
        RowStream(
            source,
            tokenizer,
            options.seq_len,
            options.seed,
            options.separator,
            options.text_field,
            index=None if run is None else run / f"stream-{i}-rank-{rank}.jsonl",
        )
        for i, source in enumerate(sources)
    )
    named = tuple(source.weight for source in sources)
    weights = last_mix(options, named) or tuple(w for w in named if w is not None) or (1.0,) * (len(sources) == 1)
    return StreamOrder(streams, weights, options.batch, parse_phases(options))


def stream_rows(order: StreamOrder, world: World) -> Rows:
    """This rank's rows of each step."""

    def share(step: int) -> Share:
        rows = order.rows(step)
        return share_of(rows[part_of(world, len(rows))])

    return share


def close(order: StreamOrder) -> None:
    """Stop reading ahead."""
    for stream in order.streams:
        stream.close()
