"""A teacher of which the student has some tokens: losses and gradients against literal ones, and whole runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_cli import api
from minitron_cli.__main__ import run
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.cached_logits import store, topk
from minitron_cli.training.cached_logits.layout import Cached
from minitron_cli.training.cached_logits.record import parse_record, record_teacher
from minitron_cli.training.cached_logits.sampled import draw
from minitron_cli.training.divergences import softmax
from minitron_cli.training.head import Head
from minitron_cli.training.losses import Teacher, fused_cached_distillation, fused_distillation
from minitron_cli.training.metrics import read_metrics
from minitron_cli.training.objectives import KINDS, Divergence, Objective
from minitron_cli.training.prepare import prepare
from minitron_cli.training.reading import Reading, match
from minitron_cli.training.rows import read_by, share_of
from minitron_cli.training.run import rehearse, train
from minitron_cli.training.step import kd_step
from tests.spellers import byte_level, made_text, save
from tests.toys import make_toy
from tests.training.naive import naive_distillation
from tests.training.runs import options, signal_after
from tests.training.test_losses import OPTIONS, assert_same, distil, make
from tests.training.test_step import gradients, llama

WHOLE = 19  # of the teacher in the cases of test_losses, whose student has 11
ROWS, KEPT = 648, 448


def larger(case: dict[str, Any], seed: int = 3) -> tuple[dict[str, Any], Tensor]:
    """The case with a teacher of more tokens, of which the student has some, in any order."""
    g = torch.Generator().manual_seed(seed)
    teacher, students = case["teachers"][0], case["head"].vocab
    rows = torch.randperm(WHOLE, generator=g)[:students]
    weight = torch.randn(WHOLE, teacher.head.weight.shape[1], generator=g, dtype=teacher.head.weight.dtype)
    bias = torch.randn(WHOLE, generator=g, dtype=weight.dtype)
    head = Head(weight, bias, teacher.head.scale, teacher.head.softcap, rows)
    matched = torch.rand(len(case["weights"]), generator=g) > 0.4
    return {**case, "teachers": [replace(teacher, head=head)]}, matched


@pytest.mark.parametrize(("rule", "given"), OPTIONS)
def test_the_loss_is_that_of_all_logits_selected_and_renormalised(rule: dict[str, Any], given: dict[str, Any]) -> None:
    """Against the teacher's logits over all its tokens, indexed; autograd makes the gradient."""
    case, matched = larger(make(**rule))
    case["targets"] %= given.get("vocab", case["head"].vocab)
    div, ids = given.get("div", Divergence()), given.get("vocab", case["head"].vocab)
    found = distil(fused_distillation, case, matched=matched, **given)

    def logits(hidden: Tensor, head: Head) -> Tensor:
        z = (hidden @ head.weight.T + head.bias) * head.scale  # type: ignore[operator]
        return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)

    teacher = case["teachers"][0]
    student = logits(case["hidden"], case["head"])[:, :ids]
    kept = logits(teacher.hidden, teacher.head).index_select(1, teacher.head.rows[:ids])
    q, p = (torch.softmax(z / div.temperature, -1) for z in (kept, student))
    kd = {
        "forward_kl": (q * (q / p).log()).sum(-1),
        "reverse_kl": (p * (p / q).log()).sum(-1),
        "soft_ce": -(q * p.log()).sum(-1),
        "jsd": div.beta * (q * (q / (m := div.beta * q + (1 - div.beta) * p)).log()).sum(-1)
        + (1 - div.beta) * (p * (p / m).log()).sum(-1),
    }[div.kind] * div.temperature**2
    ce = F.cross_entropy(student, case["targets"], reduction="none")
    learned = torch.where(matched, kd, ce)
    total = given.get("kd_weight", 1.0) * learned + given.get("ce_weight", 0.0) * ce
    expected = (total * case["weights"]).sum()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.kd, (kd * matched * case["weights"]).sum())
    torch.testing.assert_close(found.unmatched, (ce * ~matched * case["weights"]).sum())
    tensors = [case["hidden"], case["head"].weight, case["head"].bias]
    for mine, theirs in zip(torch.autograd.grad(found.loss, tensors), torch.autograd.grad(expected, tensors)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, {"chunk_tokens": 3}, {"div": Divergence(temperature=2.0), "ce_weight": 0.2}])
def test_fused_is_naive(kind: str, given: dict[str, Any]) -> None:
    case, matched = larger(make(tokens=13))
    given = {**given, "div": replace(given.get("div", Divergence()), kind=kind), "matched": matched}
    assert_same(distil(fused_distillation, case, **given), distil(naive_distillation, case, **given), case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_row_selected_is_bitwise_the_head(dtype: torch.dtype) -> None:
    case = make(tokens=13, dtype=torch.float32)
    case["head"] = Head(*(t.detach().to(dtype).requires_grad_() for t in (case["head"].weight, case["head"].bias)))
    case["hidden"] = case["hidden"].detach().to(dtype).requires_grad_()
    teacher = case["teachers"][0]
    head = Head(teacher.head.weight.to(dtype), teacher.head.bias.to(dtype))
    plain = {**case, "teachers": [Teacher(teacher.hidden.to(dtype), head)]}
    rows = replace(head, rows=torch.arange(head.vocab))
    all_of_it = {**case, "teachers": [Teacher(teacher.hidden.to(dtype), rows)]}
    matched = torch.ones(13, dtype=torch.bool)
    found = [distil(fused_distillation, plain), distil(fused_distillation, all_of_it, matched=matched)]
    assert found[0].loss == found[1].loss
    tensors = [case["hidden"], case["head"].weight, case["head"].bias]
    for one, other in zip(*(torch.autograd.grad(sums.loss, tensors) for sums in found)):
        assert torch.equal(one, other)


def test_selected_rows_of_a_large_head_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    case, matched = larger(make())
    whole = distil(fused_distillation, case, matched=matched)
    monkeypatch.setattr("minitron_cli.training.head._WIDEN_ROWS", 3)
    assert_same(distil(fused_distillation, case, matched=matched), whole, case)


# The step: a student of 61 tokens, a teacher of 80, texts of which some words are spelled otherwise.


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    image = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:61]
    return llama(24, 4, seed=1), llama(32, 5, seed=2, vocab_size=80), image


def readings(image: Tensor) -> tuple[Tensor, Reading]:
    """Two rows of the student's, and a teacher's reading: a word of two tokens that it has as one, and one of three."""
    gone = next(i for i in range(80) if i not in image.tolist())
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(4))
    own = image[ids]
    read = torch.zeros_like(ids)
    read[0, :8] = torch.cat([own[0, :3], torch.tensor([gone]), own[0, 5:]])  # [.., (3 4), ..]
    read[1, :7] = torch.cat([torch.tensor([gone]), own[1, 3:]])  # [(0 1 2), ..]
    places = torch.tensor([[0, 1, 2, -1, 3, 4, 5, 6, 7], [-1, -1, 0, 1, 2, 3, 4, 5, 6]])
    return ids, Reading(read, places)


# By hand: where both have read the same text, where it is the same token, and where the next one is too.
TEXT = [[1, 1, 1, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 1]]
TOKEN = [[1, 1, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1]]
NEXT = [[1, 1, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]


def test_what_is_compared(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    ids, reading = readings(pair[2])
    found = match(reading, ids, pair[2])
    assert found.text.int().tolist() == TEXT
    assert found.token.int().tolist() == TOKEN
    assert found.next[:, :-1].int().tolist() == NEXT


def test_a_step_against_the_models_own_logits_and_states(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    student, teacher, image = pair
    ids, reading = readings(image)
    weights = torch.full(ids.shape, 1 / 16)
    weights[:, -1] = 0
    objective = Objective(layer_map=((2, 3),), embedding=True, alpha=1.0, ce_weight=0.3)
    step = kd_step(student, teacher, objective, images=[image])
    found = step(ids, weights, readings=[reading])
    mine, theirs = (m(i, output_hidden_states=True) for m, i in ((student, ids), (teacher, reading.ids)))
    at = reading.places.clamp_min(0)
    z_t = torch.stack([theirs.logits[row, at[row]] for row in range(2)]).detach()[..., image]
    log_p, log_q = mine.logits.log_softmax(-1)[:, :-1], z_t.log_softmax(-1)[:, :-1]
    kd = (log_q.exp() * (log_q - log_p)).sum(-1)
    ce = F.cross_entropy(mine.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, 8)
    known = torch.tensor(NEXT, dtype=torch.bool)
    logits = (torch.where(known, kd, ce) + 0.3 * ce).sum() / 16
    distance = {}
    for name, block, where in (("hidden", (2, 3), TEXT), ("embedding", (-1, -1), TOKEN)):
        states = []
        for model, output, number in ((student, mine, block[0]), (teacher, theirs, block[1])):
            norm = model.model.layers[number + 1].input_layernorm
            states.append(norm(output.hidden_states[number + 1]))
        states[1] = torch.stack([states[1][row, at[row]] for row in range(2)]).detach()
        apart = 1 - F.cosine_similarity(step.get_submodule("states").projection(states[0]), states[1], dim=-1)
        distance[name] = (apart * torch.tensor(where))[:, :-1].sum() / 16
    expected = logits + sum(distance.values())
    torch.testing.assert_close(found["kd"], (kd * known).sum() / 16, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["unmatched_share"], (~known).sum() / 16)
    for name, value in distance.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-6)
    grads = [gradients(step, loss) for loss in (found["loss"], expected)]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=2e-3, atol=1e-5)


def test_all_tokens_kept_is_bitwise_the_step_of_today(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    student, teacher = pair[0], llama(32, 5, seed=2)
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(4))
    weights = torch.full(ids.shape, 1 / 16)
    weights[:, -1] = 0
    objective = Objective(layer_map=((2, 3),), embedding=True, alpha=1.0)
    found = [
        kd_step(student, teacher, objective)(ids, weights),
        kd_step(student, teacher, objective, images=[torch.arange(61)])(ids, weights),
    ]
    assert found[1]["unmatched_share"] == found[1]["unmatched"] == 0
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_permuted_ids_are_the_same_loss(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """A teacher whose ids are renumbered, read through the renumbering."""
    student, teacher, order = pair[0], llama(32, 5, seed=2), torch.randperm(61)
    other = llama(32, 5, seed=2)
    with torch.no_grad():
        for one, moved in ((teacher.model.embed_tokens, other.model.embed_tokens), (teacher.lm_head, other.lm_head)):
            moved.weight[order] = one.weight
    ids = torch.randint(0, 61, (2, 9))
    weights = torch.full(ids.shape, 1 / 18)
    weights[:, -1] = 0
    plain, renumbered = (kd_step(student, teacher)(ids, weights), kd_step(student, other, images=[order])(ids, weights))
    torch.testing.assert_close(plain["kd"], renumbered["kd"])


def test_several_teachers_are_asked_where_all_read_alike(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    student, teacher, image = pair
    ids, reading = readings(image)
    weights = torch.full(ids.shape, 1 / 16)
    weights[:, -1] = 0
    step = kd_step(student, [llama(32, 3, seed=7), teacher], Objective(shares=(3.0, 1.0)), images=[None, image])
    found = step(ids, weights, readings=[None, reading])
    assert found["unmatched_share"] == pytest.approx(4 / 16)
    assert found["loss"].item() == pytest.approx(float(found["kd"] + found["unmatched"]), rel=1e-5)


# Whole runs, on text of many scripts.


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("text") / "train.jsonl", made_text(240, seed=2))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("text") / "valid.jsonl", made_text(40, seed=3))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A toy that has learned a little of the text."""
    place = tmp_path_factory.mktemp("whole")
    raw = make_toy("llama", place / "raw", vocab_size=ROWS, max_position_embeddings=256)
    save(byte_level(made_text(400), 640), raw)
    train(options(raw, text, place / "model", steps=60, batch=16, micro_batch=16, lr=5e-3, save_every=60))
    return place / "model"


@pytest.fixture(scope="module")
def cut(whole: Path, text: Path) -> Path:
    return pruned(whole, text, whole.parent / "cut")


def pruned(source: Path, text: Path, output: Path, vocab: int = KEPT, **more: Any) -> Path:
    api.prune(source, vocab=vocab, data=[str(text)], output=output, **more)
    return output


def weights_of(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def bits_per_byte(model: Path, held_out: Path) -> float:
    """By transformers, every document by itself after the end of the one before."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    nats, size = 0.0, 0
    for line in held_out.read_text().splitlines():
        text = json.loads(line)["text"]
        row = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])[:, :256]
        with torch.no_grad():
            nats += float(loaded(row, labels=row).loss) * (row.shape[1] - 1)
        size += len(tokenizer.decode(row[0, 1:]).encode())
    return nats / size / float(np.log(2))


def test_distilling_a_cut_model_by_the_command_line(
    whole: Path, cut: Path, text: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("distill", cut, "--teacher", whole, "--data", text, "--eval-data", held_out, "--steps", 40, "--batch", 16,
             "--seq-len", 64, "--lr", "3e-3", "--device", "cpu", "-o", out)  # fmt: skip
    line = [str(word) for word in words]
    capsys.readouterr()
    assert run([*line, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] == {"student": KEPT, "teacher": 640}
    assert run(line) == 0
    assert "has 448 of the teacher's 640 tokens" in capsys.readouterr().err
    assert bits_per_byte(out, held_out) < bits_per_byte(cut, held_out) - 0.02
    first, *_, last = [line for line in read_metrics(out / "run") if "eval_ce" in line]
    assert 0.02 < first["eval_unmatched_share"] == last["eval_unmatched_share"] < 0.5
    assert last["eval_ce"] < first["eval_ce"]
    assert AutoTokenizer.from_pretrained(out)("the").input_ids == AutoTokenizer.from_pretrained(cut)("the").input_ids


def test_the_first_loss_of_a_run_is_the_literal_one(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    """The documents of the rows that step 1 reads, through both models by transformers and both tokenizers."""
    line = options(cut, text, tmp_path / "out", whole, steps=1, warmup=0, seq_len=96, cross_doc=False)
    found = train(line).progress.first
    assert found is not None
    ready = prepare(line, World(0, 1, torch.device("cpu")))
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (cut, whole)]
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (cut, whole))
    image = torch.tensor(
        [tokenizers[1].convert_tokens_to_ids(t) for t in tokenizers[0].convert_ids_to_tokens(range(KEPT))]
    )
    kd, unmatched, tokens, misread = 0.0, 0.0, 0, 0
    for ids, documents in zip(ready.order.rows(0), ready.order.documents(0)):  # type: ignore[union-attr]
        for document in np.unique(documents):
            piece = ids[documents == document].tolist()
            tokens += len(piece) - 1
            text_of = tokenizers[0].decode(piece)
            other = tokenizers[1](text_of, add_special_tokens=False).input_ids
            if "\ufffd" in text_of:
                misread += 1
                continue
            with torch.no_grad():
                z_s, z_t = (m(torch.tensor([i])).logits[0] for m, i in ((student, piece), (teacher, other)))
            ends = [[tokenizers[k].decode(i[: n + 1]) for n in range(len(i))] for k, i in enumerate((piece, other))]
            for at in range(len(piece) - 1):
                log_p = z_s[at].log_softmax(-1)
                place = ends[1].index(ends[0][at]) if ends[0][at] in ends[1] else None
                if place is not None and "\ufffd" not in ends[0][at] and other[place + 1] == int(image[piece[at + 1]]):
                    log_q = z_t[place][image].log_softmax(-1)
                    kd += float((log_q.exp() * (log_q - log_p)).sum())
                else:
                    unmatched -= float(log_p[piece[at + 1]])
    assert misread == 0, "choose another seed: a row begins or ends inside a character"
    assert found["kd"] == pytest.approx(kd / tokens, rel=1e-4)
    assert found["unmatched"] == pytest.approx(unmatched / tokens, rel=1e-4)
    assert found["unmatched"] > 0


def test_documents_apart_are_read_apart(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    line = options(cut, text, tmp_path / "out", whole, seq_len=128, cross_doc=False)
    ready = prepare(line, World(0, 1, torch.device("cpu")))
    order = ready.order
    documents = order.documents(2)  # type: ignore[union-attr]
    share = read_by(ready.models.readers, share_of(order.rows(2), documents))
    (reading,) = share.readings
    assert reading is not None
    assert reading.positions is not None
    begins = np.flatnonzero(np.diff(documents[0], prepend=-1))
    places = [int(reading.places[0, start - 1]) + 1 if start else 0 for start in begins]
    assert reading.positions[0, places].tolist() == [0] * len(begins)
    assert len(begins) > 1
    assert int(reading.positions.max()) > 8


@pytest.mark.parametrize("loss", ["logits", "logits+hidden+embedding"])
def test_a_stopped_run_goes_on_to_the_same_state(
    loss: str, whole: Path, cut: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    def line(name: str) -> Any:
        return options(cut, text, tmp_path / name, whole, loss=loss, eval_data=(str(held_out),), steps=6, save_every=2)

    train(line("whole"))
    with signal_after(3):
        assert train(line("cut")).stopped_by
    train(line("cut"))
    found, expected = weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_streams_read_the_same(
    whole: Path, cut: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_cli.data.stream.BLOCK_TOKENS", 1 << 12)
    outcome = train(options(cut, text, tmp_path / "out", whole, stream=True, steps=3))
    assert outcome.progress.last is not None
    assert outcome.progress.last["unmatched_share"] > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere2"])
def test_soft_caps_scales_and_padded_heads(family: str, tied: bool, text: Path, tmp_path: Path) -> None:
    """A student that was only cut is the restricted teacher: on text that both spell alike it has nothing to learn."""
    source = make_toy(family, tmp_path / "source", vocab_size=ROWS, tie_word_embeddings=tied)
    save(byte_level(made_text(400), 640), source)
    small = pruned(source, text, tmp_path / "small")
    plain = write(tmp_path / "plain.jsonl", ["the of and to in is that for it " * 8] * 40)
    alike = train(options(small, plain, tmp_path / "alike", source, steps=1, warmup=0)).progress.first
    assert alike is not None
    assert alike["unmatched_share"] == 0
    assert alike["kd"] == pytest.approx(0, abs=2e-6)
    other = train(options(small, text, tmp_path / "other", source, steps=1, warmup=0)).progress.first
    assert other is not None
    assert other["unmatched_share"] > 0
    assert other["kd"] > 1e-4


def test_a_model_that_was_cut_twice_and_trained_between(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    train(options(cut, text, tmp_path / "taught", whole, steps=2))
    again = pruned(tmp_path / "taught", text, tmp_path / "again", KEPT - 64, ffn=56, samples=4, seq_len=32)
    for name, teacher in (("far", whole), ("near", cut)):
        found = train(options(again, text, tmp_path / name, teacher, steps=2)).progress.last
        assert found is not None
        assert found["unmatched_share"] > 0


def test_what_does_not_go_is_refused(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(whole, tmp_path / "foreign")
    save(byte_level(made_text(100, seed=8), 640), foreign)
    for student, teacher in ((cut, foreign), (whole, cut)):
        with pytest.raises(MinitronError, match="the student's is not a cut of the teacher's") as refused:
            rehearse(options(student, text, tmp_path / "out", teacher), 1)
        assert "minitron prune --vocab" in (refused.value.hint or "")
    record_teacher(options(whole, text, tmp_path / "x", whole, top_k=8), tmp_path / "top")
    with pytest.raises(MinitronError, match="was recorded with another tokenizer"):
        train(options(cut, text, tmp_path / "out", tmp_path / "top"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("div", [Divergence(kind=kind, temperature=1.5) for kind in KINDS])
def test_all_kept_ids_but_one_recorded_are_the_live_loss(div: Divergence) -> None:
    """The last one is alone in the bucket of the rest."""
    case, matched = larger(make(tokens=13))
    (teacher,) = case["teachers"]
    given = {"div": div, "ce_weight": 0.2, "targets": case["targets"]}
    live = fused_distillation(case["hidden"], case["head"], case["teachers"], case["weights"], matched=matched, **given)
    top = topk.record(teacher.hidden, teacher.head, case["head"].vocab - 1, div.temperature)
    cached = replace(top, matched=matched)
    found = fused_cached_distillation(case["hidden"], case["head"], cached, case["weights"], **given)
    for name in ("loss", "kd", "ce", "unmatched"):
        torch.testing.assert_close(getattr(found, name), getattr(live, name), rtol=1e-5, atol=1e-7)
    tensors = [case["hidden"], case["head"].weight, case["head"].bias]
    for one, other in zip(*(torch.autograd.grad(sums.loss, tensors) for sums in (found, live))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("record", ["top-k", "sampled:300", "sampled:40:0.7"])
def test_gaps_come_back_from_the_disk(record: str) -> None:
    """Of two windows; what is not in a gap is as in a record without gaps."""
    g = torch.Generator().manual_seed(5)
    hidden, head = torch.randn(14, 6, generator=g), Head(torch.randn(WHOLE, 6, generator=g))
    matched = torch.rand(14, generator=g) > 0.4
    draws, power = parse_record(record)
    said: Cached
    if draws:
        said = draw(hidden, head, torch.rand(14, generator=g), draws, power)
    else:
        said = topk.record(hidden, head, 4)
    header = store.Header("teacher", "tokens", ("data",), 8, 0 if draws else 4, WHOLE, 1.0, draws=draws, power=power)
    plain = header.layout().unpack(header.layout().pack(said, 2))
    layout = replace(header, reader="reader").layout()
    records = layout.pack(replace(said, matched=matched), 2)
    assert list(layout.ends(np.frombuffer(b"".join(records), np.uint8), 9)) == list(np.cumsum([*map(len, records)]))
    found = layout.unpack(records)
    known = torch.cat([matched.view(2, 7), matched.view(2, 7)[:, -1:]], 1).flatten()
    assert found.matched is not None
    assert found.matched.tolist() == known.tolist()
    z = torch.randn(16, WHOLE, generator=g)
    values = [one.at(known).divergence(Divergence(), softmax(z[known]), None) for one in (plain, found)]
    torch.testing.assert_close(*values)
    assert found.divergence(Divergence(), softmax(z), None).isfinite().all()


@pytest.mark.parametrize("more", [{}, {"cross_doc": False, "seq_len": 96}], ids=["joined", "apart"])
def test_a_recorded_teacher_is_the_live_one_across_the_cut(
    more: dict[str, Any], whole: Path, cut: Path, text: Path, tmp_path: Path
) -> None:
    line = options(cut, text, tmp_path / "x", whole, top_k=KEPT - 1, steps=4, ce_weight=0.2, **more)
    record_teacher(line, tmp_path / "top")
    live = train(replace(line, output=str(tmp_path / "live")))
    recorded = train(replace(line, output=str(tmp_path / "recorded"), teacher=(str(tmp_path / "top"),)))
    before, after = recorded.progress.first, recorded.progress.last
    assert before is not None
    assert after is not None
    assert live.progress.first is not None
    assert live.progress.last is not None
    assert before["unmatched_share"] > 0
    for name in ("ce", "unmatched", "unmatched_share"):
        assert before[name] == pytest.approx(live.progress.first[name], rel=1e-6), name
    # Cached values are float16.
    for found, expected in ((before, live.progress.first), (after, live.progress.last)):
        assert found["kd"] == pytest.approx(expected["kd"], rel=2e-3)
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-4)


def test_draws_are_recorded_across_the_cut(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    line = options(cut, text, tmp_path / "x", whole, steps=4)
    record_teacher(line, tmp_path / "drawn", "sampled:200")
    live = train(replace(line, output=str(tmp_path / "live"))).progress.first
    drawn = train(replace(line, output=str(tmp_path / "out"), teacher=(str(tmp_path / "drawn"),))).progress.first
    assert live is not None
    assert drawn is not None
    assert drawn["unmatched"] == pytest.approx(live["unmatched"], rel=1e-6)
    assert drawn["kd"] == pytest.approx(live["kd"], abs=0.01), "the draws of 100 tokens"
    # Recorded for the student's tokens: no other student of the teacher can read it.
    with pytest.raises(MinitronError, match="was recorded with another tokenizer"):
        train(options(whole, text, tmp_path / "other", tmp_path / "drawn"))


def test_another_teachers_tokenizer_is_another_run(whole: Path, cut: Path, text: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(whole, tmp_path / "teacher")
    train(options(cut, text, tmp_path / "out", teacher, steps=2))
    raw = json.loads((teacher / "tokenizer.json").read_text())
    raw["model"]["merges"].pop()
    (teacher / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(MinitronError, match="vocabulary"):
        train(options(cut, text, tmp_path / "out", teacher, steps=2))
