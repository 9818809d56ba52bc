"""A run whose phases have rows of other lengths and batches: what it reads, counts, forecasts and refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.chain.estimate import estimate
from minitron_cli.data import stream
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.spec.recipe import Recipe, Step
from minitron_cli.training import announce, state
from minitron_cli.training.cached_logits.record import record_teacher
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.preflight import size_of
from minitron_cli.training.prepare import prepare
from minitron_cli.training.rows import rows_of
from minitron_cli.training.run import rehearse, train
from minitron_cli.training.stretches import Stretch, steps_of_tokens, stretches_of
from tests.training.runs import options, signal_after, write_text
from tests.training.server import Behaviour, serving

Toy = Callable[..., Path]
ALONE = World(0, 1, torch.device("cpu"))
# 5 steps of 8 rows of 16 tokens, then 3 of 2 x 32, then 4 of 4 x 32.
PHASES = ("5:batch=8,seq-len=16", "8:batch=2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl", documents=400)


def test_resumed_within_phases_it_is_bitwise_the_uninterrupted_run(toy: Toy, text: Path, tmp_path: Path) -> None:
    """Stopped in the first phase and at its end; metrics count the tokens that were read."""
    student, teacher = toy("llama"), toy("llama", hidden_size=66, seed=5)
    whole = train(options(student, text, tmp_path / "whole", teacher, phases=PHASES, eval_data=(str(text),)))
    line = options(student, text, tmp_path / "parts", teacher, phases=PHASES, eval_data=(str(text),))
    for step in (3, 5):
        with signal_after(step):
            assert train(line).progress.step == step
    train(line)
    saved = [dict(state.load_weights(tmp_path / p / "run" / "step-0000012", "")) for p in ("whole", "parts")]
    assert all(torch.equal(t, saved[1][name]) for name, t in saved[0].items())
    lines = {entry["step"]: entry for entry in read_metrics(tmp_path / "parts" / "run") if "kd" in entry}
    tokens = np.cumsum([128] * 5 + [64] * 3 + [128] * 4)
    assert [lines[step]["tokens"] for step in range(1, 13)] == tokens.tolist()
    assert whole.progress.tokens == tokens[-1]
    cost = [3 * size_of(student, length).flops + size_of(teacher, length).flops for length in (16, 32)]
    assert whole.progress.flops == pytest.approx(640 * cost[0] + 704 * cost[1])


@pytest.mark.parametrize("cross_doc", [True, False])
def test_ranks_read_parts_of_what_one_reads(cross_doc: bool, toy: Toy, text: Path, tmp_path: Path) -> None:
    ready = prepare(options(toy("llama"), text, tmp_path / "out", phases=PHASES, cross_doc=cross_doc), ALONE)
    order = ready.order
    for step in range(12):
        whole = rows_of(order, ALONE, cross_doc=cross_doc)(step)
        parts = [rows_of(order, World(rank, 2), cross_doc=cross_doc)(step) for rank in range(2)]
        assert whole.ids.shape == ((8, 16) if step < 5 else (2, 32) if step < 8 else (4, 32))
        assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
        assert torch.equal(torch.cat([part.mask for part in parts]), whole.mask)


def test_a_dry_run_says_what_each_phase_reads_and_forecasts_the_largest(
    toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = options(toy("llama"), text, tmp_path / "out", phases=("5:batch=1,seq-len=128", "8:batch=2"))
    facts, _ = rehearse(line, 1)
    assert facts["phases before"] == [
        "5 steps x 1 sequences x 128 tokens, micro-batch 1",
        "3 steps x 2 sequences x 32 tokens, micro-batch 2",
    ]
    assert (facts["tokens"], facts["batch"], facts["sequence length"]) == (640 + 192 + 512, 4, 32)
    alone = replace(line, phases=(), micro_batch=1)
    long, short = (
        rehearse(replace(alone, batch=batch, seq_len=length), 1)[0]["memory per device"]["total"]
        for batch, length in [(1, 128), (4, 32)]
    )
    assert facts["memory per device"]["total"] == long > short
    said: list[str] = []
    announce.announce(prepare(line, ALONE), ALONE, said.append)
    assert "5 steps x 1 sequences x 128 tokens, then 3 steps x 2 sequences x 32 tokens, then 4 steps x 4" in said[1]
    monkeypatch.setattr(announce, "available", lambda world: short)
    with pytest.raises(MinitronError, match="a step needs about"):
        train(line)


def test_phases_of_weights_alone_are_one_stretch(toy: Toy, text: Path) -> None:
    """Those that reach beyond the end, too, as they always could."""
    given = options(toy("llama"), text, Path("out"), phases=("5:1.0", "50:2.0"))
    assert stretches_of(given) == (Stretch(0, 12, 4, 32),)
    # What changes the rows must leave steps for what follows.
    with pytest.raises(MinitronError, match="leaves no step"):
        stretches_of(replace(given, phases=("5:1.0", "12:batch=2")))


@pytest.mark.parametrize(
    ("tokens", "at_most", "steps"),
    [
        (1, False, 1),
        (640, False, 5),
        (641, False, 6),
        (641, True, 5),
        (832, False, 8),
        (833, False, 9),
        (1000, True, 9),
    ],
)
def test_tokens_are_counted_phase_by_phase(tokens: int, at_most: bool, steps: int, toy: Toy, text: Path) -> None:
    given = options(toy("llama"), text, Path("out"), phases=PHASES, steps=None)
    assert steps_of_tokens(given, tokens, at_most=at_most) == steps


def test_one_pass_reads_no_token_twice(toy: Toy, text: Path, tmp_path: Path) -> None:
    ready = prepare(options(toy("llama"), text, tmp_path / "out", phases=PHASES, steps=None), ALONE)
    assert ready.options.steps is not None
    (passed,) = ready.order.epochs(ready.options.steps)  # type: ignore[union-attr]
    assert 0.9 < passed <= 1.0


def test_a_recipe_counts_its_phases(toy: Toy, text: Path) -> None:
    given = {"steps": 12, "batch": 4, "seq-len": 32, "phase": PHASES}
    step = Step("t", "train", {"model": ("{model}",), "data": (str(text),)}, given)
    config = json.loads((toy("llama") / "config.json").read_text())
    (found,) = estimate(Recipe("r", "", {}, (step,)), {"{model}": config})
    assert found.tokens == 1344
    short, long = (size_of(toy("llama"), length).flops for length in (16, 32))
    assert found.flops == pytest.approx(3 * (640 * short + 704 * long))


def test_a_served_teacher_is_asked_for_rows_of_every_length(
    toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    behaviour, teacher = Behaviour(), toy("llama", hidden_size=66, seed=5)
    with serving(teacher, behaviour) as address:
        phases = ("2:batch=8,seq-len=16",)
        line = options(toy("llama"), text, tmp_path / "out", address, top_k=90, steps=4, phases=phases)
        train(line)
    asked = [len(body["prompt"][0]) for body in behaviour.asked]
    assert (asked.count(16), asked.count(32)) == (16, 8)
    live = train(replace(line, output=str(tmp_path / "live"), teacher=(str(teacher),)))
    served = read_metrics(tmp_path / "out" / "run")[-1]
    assert served["kd"] == pytest.approx(live.progress.last["kd"], rel=0.02)  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": ("5:seq-len=24",)}, "rows of 24 tokens do not divide those of 32"),
        ({"phases": ("5:seq-len=256",)}, "--phase: seq-len 256 is longer than the context"),
        ({"phases": ("5:seq_len=16",)}, "--phase '5:seq_len=16' cannot be read"),
        ({"phases": ("5:batch=0",)}, "--phase '5:batch=0' cannot be read"),
        ({"phases": ("5:batch=8,batch=4",)}, "cannot be read"),
        ({"phases": ("5:",)}, "cannot be read"),
        ({"phases": ("5:0.5,0.5,batch=8",)}, "2 weights for 1 sources"),
        ({"phases": ("12:batch=8",)}, "a --phase until step 12 leaves no step for --seq-len and --batch"),
        ({"phases": ("5:batch=100000",)}, "the data is too short"),
        ({"phases": ("5:seq-len=16",), "stream": True}, "phases with a length of their own need token files"),
    ],
)
def test_phases_that_cannot_be_are_refused_in_a_dry_run_too(
    changes: dict, message: str, toy: Toy, text: Path, tmp_path: Path
) -> None:
    line = options(toy("llama"), text, tmp_path / "out", **changes)
    for attempt in (lambda: rehearse(line, 1), lambda: train(line)):
        with pytest.raises(MinitronError, match=re.escape(message)):
            attempt()
    assert not (tmp_path / "out").exists()


def test_a_batch_that_does_not_divide_over_the_processes(toy: Toy, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="--batch 3 does not divide over 2 processes"):
        rehearse(options(toy("llama"), text, tmp_path / "out", phases=("5:batch=3",)), 2)


def test_a_recording_is_of_one_length_and_any_batch(toy: Toy, text: Path, tmp_path: Path) -> None:
    teacher = toy("llama", hidden_size=66, seed=5)
    line = options(toy("llama"), text, tmp_path / "out", teacher, phases=("5:batch=8",), top_k=8)
    record_teacher(line, tmp_path / "top")
    train(replace(line, teacher=(str(tmp_path / "top"),)))
    longer = replace(line, phases=("5:seq-len=16",), output=str(tmp_path / "other"))
    for attempt in (
        lambda: record_teacher(longer, tmp_path / "new"),
        lambda: train(replace(longer, teacher=(str(tmp_path / "top"),))),
    ):
        with pytest.raises(MinitronError, match="holds windows of one length, and --phase has rows of 16, 32"):
            attempt()
    assert not (tmp_path / "new").exists()


def test_a_stream_changes_its_batch(toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK_TOKENS", 1 << 12)
    outcome = train(options(toy("llama"), text, tmp_path / "out", phases=("5:batch=8",), stream=True))
    assert outcome.progress.tokens == 5 * 8 * 32 + 7 * 4 * 32
