"""Whole runs in one process: exact resume, export, what is written down, what is refused."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.errors import MinitronError
from minitron_cli.training import export, loop, state
from minitron_cli.training.export_run import export_step
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.run import train
from minitron_cli.training.step import KDStep
from tests.toys import make_toy, toy_tokenizer
from tests.training.runs import options, signal_after, write_text

Toy = Callable[..., Path]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def assert_bitwise(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def untimed_metrics(output: Path) -> list[dict]:
    timed = ("tokens_per_second", "peak_memory")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(output / "run")]


# The hidden loss has a projection and a dynamic alpha to restore; the tied student one tensor under two names.
RUNS = {
    "distill, logits": ({}, {"hidden_size": 66, "seed": 5}, {}),
    "distill, hidden, tied": (
        {"tie_word_embeddings": True},
        {"hidden_size": 66, "seed": 5},
        {"loss": "logits+hidden+embedding"},
    ),
    "train": ({}, None, {"spike_guard": 3.0}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_twice_is_bitwise_the_uninterrupted_one(name: str, toy: Toy, text: Path, tmp_path: Path) -> None:
    student_change, teacher_change, changes = RUNS[name]
    student = toy("llama", **student_change)
    teacher = toy("llama", **teacher_change) if teacher_change else None
    whole = train(options(student, text, tmp_path / "whole", teacher, **changes))

    line = options(student, text, tmp_path / "parts", teacher, **changes)
    with signal_after(5):
        stopped = train(line)
    assert (stopped.progress.step, stopped.stopped_by) == (5, 143)
    assert not (tmp_path / "parts" / "minitron.json").exists()
    with signal_after(9, signal.SIGINT):
        assert train(line).stopped_by == 130
    again = train(line)

    assert again.progress.step == whole.progress.step == 12
    assert_bitwise(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    saved = [dict(state.load_weights(tmp_path / p / "run" / "step-0000012", "")) for p in ("whole", "parts")]
    assert_bitwise(*saved)
    lines = [untimed_metrics(tmp_path / name) for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[1]] == list(range(1, 13))


def test_a_kill_between_checkpoints_leaves_no_trace(toy: Toy, text: Path, tmp_path: Path) -> None:
    """What a killed process wrote beyond its last checkpoint is cut off: no step is in the metrics twice."""
    line = options(toy("llama"), text, tmp_path / "out")
    with signal_after(7):
        train(line)
    run = tmp_path / "out" / "run"
    shutil.rmtree(run / "step-0000007")
    (run / ".step-0000007.tmp").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ce')
    train(line)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 13))
    train(options(toy("llama"), text, tmp_path / "whole"))
    assert_bitwise(weights(tmp_path / "whole"), weights(tmp_path / "out"))


def test_the_same_line_again_finds_it_done(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", steps=2)
    train(line)
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert train(line).was_done
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_without_checkpoints_says_what_it_came_to(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", steps=2)
    first = train(line).progress
    for step in state.checkpoints(tmp_path / "out" / "run"):
        shutil.rmtree(step)
    again = train(line).progress
    assert (again.step, again.tokens, again.last) == (2, first.tokens, first.last)


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_is_the_student_as_it_was_stored(tied: bool, text: Path, tmp_path: Path) -> None:
    student = make_toy("llama", tmp_path / "student", dtype=torch.bfloat16, tie_word_embeddings=tied)
    (student / "chat_template.jinja").write_text("{{ messages }}")
    (student / "LICENSE.txt").write_text("free")
    (student / "NOTICE").write_text("by us")
    (student / "generation_config.json").write_text('{"max_new_tokens": 7}')
    out = tmp_path / "out"
    train(options(student, text, out, steps=2))
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert [(out / name).read_text() for name in ("LICENSE.txt", "NOTICE")] == ["free", "by us"]
    assert json.loads((out / "generation_config.json").read_text()) == {"max_new_tokens": 7}
    assert json.loads((out / "config.json").read_text()) == json.loads((student / "config.json").read_text())
    assert weights(out).keys() == weights(student).keys()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    saved = state.checkpoints(out / "run")[-1]
    name = "model.layers.1.mlp.down_proj.weight"
    master = dict(state.load_weights(saved, f"model.student.{name}"))[f"model.student.{name}"]
    assert master.dtype == torch.float32
    assert torch.equal(model.state_dict()[name], master.to(torch.bfloat16))
    assert not torch.equal(master, weights(student)[name].float()), "nothing was learned"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_that_computes_something_else_is_refused(
    dtype: str, toy: Toy, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A final norm that is saved with twice its weights; with the right ones the same run goes through."""
    line = options(toy("llama"), text, tmp_path / "out", steps=2, export_dtype=dtype, teacher=toy("llama", seed=5))
    right = export.gather

    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        found = right(*args)
        return {**found, "model.norm.weight": 2 * found["model.norm.weight"]}

    monkeypatch.setattr(export, "gather", wrong)
    with pytest.raises(MinitronError, match="does not compute what the trained one does"):
        train(line)
    assert not (tmp_path / "out" / "minitron.json").exists()
    monkeypatch.setattr(export, "gather", right)
    assert train(line).progress.step == 2
    assert (tmp_path / "out" / "minitron.json").exists()


def test_the_export_of_a_saved_step(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", keep=3)
    train(line)
    train(options(toy("llama"), text, tmp_path / "short", steps=4, schedule="constant"))
    directory = export_step(line, 4)
    assert directory.name == "out-step-4"
    AutoModelForCausalLM.from_pretrained(directory)
    assert json.loads((directory / "minitron.json").read_text())["training"]["steps"] == 4
    assert_bitwise(weights(tmp_path / "out"), weights(export_step(line, 12)))
    with pytest.raises(MinitronError, match=r"no checkpoint of step 5 \(saved: 4, 8, 12\)"):
        export_step(line, 5)
    with pytest.raises(MinitronError, match=r"is not the model that .*run was started with"):
        export_step(replace(line, student=str(toy("qwen2"))), 4)


def test_from_scratch_depends_on_the_seed_alone(toy: Toy, text: Path, tmp_path: Path) -> None:
    """The weights of the directory are not read: another checkpoint of that config gives the same run."""
    outputs = {}
    for name, student, seed in (("a", toy("llama"), 1), ("b", toy("llama", seed=3), 1), ("c", toy("llama"), 2)):
        train(options(student, text, tmp_path / name, steps=2, from_scratch=True, seed=seed))
        outputs[name] = weights(tmp_path / name)
    assert_bitwise(outputs["a"], outputs["b"])
    assert not torch.equal(outputs["a"]["model.embed_tokens.weight"], outputs["c"]["model.embed_tokens.weight"])


def test_evaluation_is_the_models_own_loss(toy: Toy, text: Path, tmp_path: Path) -> None:
    held_out = write_text(tmp_path / "held_out.jsonl", seed=9)
    teacher = toy("llama", hidden_size=66, seed=5)
    outcome = train(
        options(
            toy("llama"), text, tmp_path / "out", teacher, steps=3, eval_data=(str(held_out),), eval_windows=7, lr=1e-2
        )
    )
    (file,) = token_files(parse_sources((str(held_out),)), teacher)
    ids = torch.tensor(file.tokens[: 7 * 32].astype("int64").reshape(7, 32))
    for directory, found in ((toy("llama"), outcome.before), (tmp_path / "out", outcome.after)):
        assert found is not None
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(directory)(ids).logits[:, :-1].log_softmax(-1)
            taught = AutoModelForCausalLM.from_pretrained(teacher)(ids).logits[:, :-1].log_softmax(-1)
        ce = torch.nn.functional.nll_loss(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        kl = (taught.exp() * (taught - logits)).sum(-1).mean().item()
        same = (taught.argmax(-1) == logits.argmax(-1)).float().mean().item()
        assert found == pytest.approx({"eval_ce": ce, "eval_kd": kl, "eval_agreement": same}, rel=1e-4)


def test_the_evaluation_keeps_documents_apart_where_the_training_does(toy: Toy, text: Path, tmp_path: Path) -> None:
    """Each document's piece of each held-out window, run through the model by itself."""
    held_out = write_text(tmp_path / "held_out.jsonl", seed=9)
    line = options(
        toy("llama"), text, tmp_path / "out", steps=1, eval_data=(str(held_out),), eval_windows=5, seq_len=128,
        cross_doc=False,
    )  # fmt: skip
    found = train(line).before
    assert found is not None
    (file,) = token_files(parse_sources((str(held_out),)), toy("llama"))
    model, total, count = AutoModelForCausalLM.from_pretrained(toy("llama")), 0.0, 0
    for row, documents in zip(file.windows(np.arange(5), 128), file.document_numbers(np.arange(5), 128)):
        for document in np.unique(documents):
            piece = torch.from_numpy(row[documents == document])[None]
            with torch.no_grad():
                log_probs = model(piece).logits[0, :-1].log_softmax(-1)
            total -= log_probs.gather(1, piece[0, 1:, None]).sum().item()
            count += piece.shape[1] - 1
    assert found["eval_ce"] == pytest.approx(total / count, rel=1e-5)


def test_ids_that_the_model_does_not_embed_are_refused(toy: Toy, text: Path, tmp_path: Path) -> None:
    """By the header and the tokens before the run where a tokenizer knows more ids, else by the rows of the step."""
    student = Path(shutil.copytree(toy("llama"), tmp_path / "student"))
    toy_tokenizer(99).save_pretrained(student)
    tilde = tmp_path / "tilde.txt"
    tilde.write_text("~" * 4000)
    for data, changes in ((tilde, {}), (text, {"eval_data": (str(tilde),)})):
        with pytest.raises(MinitronError, match=r"holds token id 98, .* has 97 embeddings"):
            train(options(student, data, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
    with pytest.raises(MinitronError, match="the data of step 1 holds token id 98"):
        train(options(student, tilde, tmp_path / "out", stream=True, steps=2))

    (file,) = token_files(parse_sources((str(text),)), toy("llama"))
    damaged = Path(shutil.copytree(file.path, tmp_path / "damaged"))
    tokens = np.fromfile(damaged / "tokens.bin", "<u2")
    tokens[tokens == tokens[5]] = 60_000
    tokens.tofile(damaged / "tokens.bin")
    with pytest.raises(MinitronError, match=r"the data of step \d+ holds token id 60,000"):
        train(options(toy("llama"), damaged, tmp_path / "damaged-out"))


def test_each_source_of_the_evaluation_is_named(toy: Toy, text: Path, tmp_path: Path) -> None:
    first, second = write_text(tmp_path / "first.jsonl", seed=1), write_text(tmp_path / "second.jsonl", seed=2)
    outcome = train(
        options(toy("llama"), text, tmp_path / "out", steps=1, eval_data=(str(first), str(second)), eval_windows=3)
    )
    after = outcome.after
    assert after is not None
    assert after["eval_ce"] == pytest.approx((after["eval_ce/first"] + after["eval_ce/second"]) / 2)


def test_other_options_and_other_inputs_are_named(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", steps=2)
    train(line)
    with pytest.raises(MinitronError, match=re.escape("--lr 0.001 -> 0.002")):
        train(options(toy("llama"), text, tmp_path / "out", steps=2, lr=2e-3))
    with pytest.raises(MinitronError, match=r"student: \w{12} -> \w{12}"):
        train(options(toy("llama", seed=3), text, tmp_path / "out", steps=2))
    with pytest.raises(MinitronError, match=r"data: \w{12}.* -> \w{12}"):
        train(options(toy("llama"), write_text(tmp_path / "other.jsonl", seed=4), tmp_path / "out", steps=2))
    assert not train(options(toy("llama"), text, tmp_path / "out", steps=2, lr=2e-3), overwrite=True).was_done


def test_a_directory_of_something_else_is_left_alone(toy: Toy, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(MinitronError, match=r"out"):
            train(options(toy("llama"), text, tmp_path / "out"), overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 129}, "longer than the context"),
        ({"batch": 10_000, "micro_batch": None}, "the data is too short"),
        ({"micro_batch": 3}, "--batch 4 is 4 sequences per process, which does not divide into micro-batches of 3"),
        ({"warmup": 12}, "--warmup 12 is as long as the run"),
        ({"device": "tpu-9"}, "is not a device"),
        ({"export_dtype": "int3"}, "--export-dtype must be one of"),
    ],
)
def test_refused_before_anything_is_written(changes: dict, message: str, toy: Toy, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=re.escape(message)):
        train(options(toy("llama"), text, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_tokenizers_of_one_size_are_still_told_apart(toy: Toy, text: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(toy("llama", seed=5), tmp_path / "teacher")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MinitronError, match=r"different tokenizers \(they differ in .*vocabulary"):
        train(options(toy("llama"), text, tmp_path / "out", teacher))


def test_heads_padded_to_different_lengths_share_their_ids(toy: Toy, text: Path, tmp_path: Path) -> None:
    teacher = toy("llama", vocab_size=104, hidden_size=66, seed=5)
    shutil.copyfile(toy("llama") / "tokenizer.json", teacher / "tokenizer.json")
    outcome = train(options(toy("llama"), text, tmp_path / "out", teacher, steps=2))
    assert outcome.progress.last is not None


def test_a_step_that_is_not_finite_stops_by_name_and_keeps_the_good_weights(
    toy: Toy, text: Path, tmp_path: Path
) -> None:
    # A rate this high throws the weights far enough for float32 to overflow within a few steps.
    line = options(toy("llama"), text, tmp_path / "out", lr=1e18, warmup=0, grad_clip=float("inf"), weight_decay=0.0)
    with pytest.raises(MinitronError, match=r"not finite in step \d+ \(rows \d+ to \d+ of the data order\)") as caught:
        train(line)
    step = int(re.search(r"in step (\d+)", caught.value.message)[1])  # type: ignore[index]
    saved = state.checkpoints(tmp_path / "out" / "run")[-1]
    assert saved.name == f"step-{step - 1:07d}"

    # What is left beside it names the rows and the layers, by the same model in transformers.
    place = tmp_path / "out" / "run" / f"not-finite-step-{step}"
    assert str(place) in caught.value.message
    repro = json.loads((place / "repro.json").read_text(), parse_constant=pytest.fail)
    assert (repro["step"], repro["seed"], repro["ranks"]) == (step, 0, 1)
    assert any(value in ("nan", "inf", "-inf") for value in repro["values"].values())
    assert len(repro["micro_batches_of_rank_0"]) == 2
    rows = load_file(place / "rows-0.safetensors")
    (file,) = token_files(parse_sources((str(text),)), toy("llama"))
    windows = [window for _, window in repro["rows"]]
    assert torch.equal(rows["ids"], torch.from_numpy(file.windows(np.array(windows), 32)))
    held = dict(state.load_weights(saved, "model.student."))
    for layer, norms in repro["norms"].items():
        mine = [t.double() for name, t in held.items() if f"{name}.".startswith(f"model.{layer}.")]
        assert float(norms["weight"]) == pytest.approx(float(torch.cat([t.flatten() for t in mine]).norm()), rel=1e-6)
    assert {f"student.model.layers.{i}" for i in range(3)} < set(repro["norms"])
    assert any(norms["gradient"] in ("nan", "inf") for norms in repro["norms"].values())


def test_the_norms_of_a_repro_are_those_of_the_unclipped_gradient(toy: Toy, text: Path, tmp_path: Path) -> None:
    """A step whose loss one term makes infinite after the fact: the gradients themselves are an ordinary model's."""
    line = options(toy("llama"), text, tmp_path / "out", grad_clip=1e-3)
    original = loop._read

    def read(terms: Any, norm: Any, world: Any) -> dict[str, float]:
        return {**original(terms, norm, world), "loss": float("inf")}

    with patch.object(loop, "_read", read), pytest.raises(MinitronError, match="loss not finite in step 1 "):
        train(line)
    place = tmp_path / "out" / "run" / "not-finite-step-1"
    repro, rows = json.loads((place / "repro.json").read_text()), load_file(place / "rows-0.safetensors")
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    model(rows["ids"], labels=rows["ids"]).loss.backward()
    for layer, norms in repro["norms"].items():
        named = [p for name, p in model.named_parameters() if f"student.{name}.".startswith(f"{layer}.")]
        gradient = torch.cat([p.grad.flatten() for p in named])
        assert norms["gradient"] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_a_repro_holds_no_more_gradients_than_the_step_did(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", lr=1e18, warmup=0, grad_clip=float("inf"), gradients="sharded")
    reduced: list[bool] = []
    spy = patch.object(
        KDStep, "set_requires_gradient_sync", lambda _, on: reduced.append(on), create=True
    )  # FSDP's, where there are several processes
    with spy, pytest.raises(MinitronError, match="not finite"):
        train(line)
    assert len(reduced) >= 4
    assert all(reduced)


def test_tensorboard_is_named_where_it_is_missing(toy: Toy, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MinitronError, match="needs the tensorboard package"):
            train(options(toy("llama"), text, tmp_path / "out", tensorboard=True))


def test_a_stream_resumes_bitwise_and_needs_its_length(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "whole", stream=True)
    train(line)
    with signal_after(5):
        train(replace(line, output=str(tmp_path / "parts")))
    assert train(replace(line, output=str(tmp_path / "parts"))).progress.step == 12
    assert_bitwise(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    with pytest.raises(MinitronError, match="a stream has no end"):
        train(replace(line, output=str(tmp_path / "endless"), steps=None))


def test_students_are_exported_on_the_way(toy: Toy, text: Path, tmp_path: Path) -> None:
    line = options(toy("llama"), text, tmp_path / "out", save_every=3, keep=9, export_at=("25%", "6,12"))
    train(line)
    for step in (3, 6, 12):
        place = tmp_path / "out" / "run" / "exported" / f"step-{step}"
        assert_bitwise(weights(place), weights(export_step(line, step)))
        assert json.loads((place / "minitron.json").read_text())["training"]["steps"] == step
        AutoModelForCausalLM.from_pretrained(place)


def test_a_student_is_exported_also_where_the_run_was_killed_meanwhile(toy: Toy, text: Path, tmp_path: Path) -> None:
    """At step 6, which is saved as well."""
    line = options(toy("llama"), text, tmp_path / "out", save_every=3, export_at=("6",))
    with patch.object(export, "write_model", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(line)
    train(line)
    place = tmp_path / "out" / "run" / "exported" / "step-6"
    assert json.loads((place / "minitron.json").read_text())["training"]["steps"] == 6


@pytest.mark.parametrize("wrong", ["13", "0", "101%", "half", "", "3,x", "nan%", "-5"])
def test_an_export_beyond_the_run_is_refused_before_it_starts(wrong: str, toy: Toy, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="--export-at"):
        train(options(toy("llama"), text, tmp_path / "out", export_at=(wrong,)))
    assert not (tmp_path / "out").exists()
