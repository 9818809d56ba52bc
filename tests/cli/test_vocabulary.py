"""The vocabulary as an axis: every family through transformers, the files around it, the command line."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.data.tokenizer import tokenizer_json
from minitron_cli.data.vocabulary.pieces import pieces_of
from minitron_cli.errors import MinitronError
from minitron_cli.prune.mask import masked_source
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.verify import verify
from minitron_cli.prune.write import write_pruned
from minitron_cli.spec.plan import Plan
from minitron_cli.training.options import Options
from minitron_cli.training.run import rehearse
from tests.prune.cutting import difference, load, logits_of, random_scores, sizes_for
from tests.spellers import KINDS, byte_level, made_text, save
from tests.toys import TOY_CONFIGS, make_toy

Toy = Callable[..., Path]
Run = Callable[..., Any]
SIZE, ROWS, KEPT = 640, 648, 512  # tokens, embeddings, and those that stay
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@cache
def backend(kind: str) -> Any:
    return KINDS[kind](made_text(400), SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy with embeddings beyond its tokenizer, a chat template and a generation config."""
    path = make_toy("llama", tmp_path_factory.mktemp("vocab") / "model", vocab_size=ROWS, pad_token_id=5)
    save(backend("byte-level BPE"), path, pad_token="<pad>", chat_template=TEMPLATE)
    generation = {"eos_token_id": [2, 600], "bos_token_id": 1, "suppress_tokens": [601]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    texts = made_text(120, seed=2)
    path.write_text("".join(json.dumps({"text": t, "domain": f"d{i % 2}"}) + "\n" for i, t in enumerate(texts)))
    return path


def random_plan(source: Path, more: dict[str, int] | None = None, rows: int = ROWS, kept: int = KEPT) -> Plan:
    """Random ids stay, those that the configs name among them."""
    checkpoint = open_checkpoint(source)
    draw = np.random.default_rng(3)
    rest = draw.choice(np.arange(8, rows), kept - 8, replace=False)
    wanted = Target({"vocab": kept, **(more or {})})
    shape = target_shape(checkpoint, wanted)
    ids = np.sort(np.concatenate([np.arange(8), rest]))
    return make_plan(checkpoint.shape, shape, wanted, random_scores(checkpoint.shape), ids)


@pytest.mark.parametrize("model_type", TOY_CONFIGS)
@pytest.mark.parametrize("cut", ["alone", "all"])
def test_logits_are_the_sources_on_kept_ids(model_type: str, cut: str, toy: Toy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(toy(model_type), source)
    for file in source.glob("tokenizer*"):
        file.unlink()  # a toy's has words, which cannot be cut; the weights are what is looked at
    plan = random_plan(source, sizes_for(model_type, "all") if cut == "all" else {}, rows=97, kept=64)
    write_pruned(open_checkpoint(source), plan, tmp_path / "small")
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(1))
    found = logits_of(tmp_path / "small", ids)
    assert found.shape[-1] == 64
    if cut == "alone":
        vocab = torch.as_tensor(plan.kept["vocab"])
        assert difference(found, logits_of(source, vocab[ids])[..., vocab]) < 1e-5
    else:
        expected = masked_source(load(source), open_checkpoint(source).family, plan)(ids)
        assert difference(found, expected) < 2e-5


@pytest.mark.parametrize("tied", [True, False])
def test_untied_heads_and_padded_embeddings(tied: bool, tmp_path: Path) -> None:
    source = make_toy("llama", tmp_path / "source", vocab_size=ROWS, tie_word_embeddings=tied)
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    save(backend("byte-level BPE"), source)
    raw = tokenizer_json(source)
    order = np.flatnonzero(pieces_of(raw, ROWS).present)
    assert len(order) == SIZE
    plan = random_plan(source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    write_pruned(open_checkpoint(source), plan, tmp_path / "small")
    ids, vocab = torch.arange(20)[None] * 7, torch.as_tensor(plan.kept["vocab"])
    assert difference(logits_of(tmp_path / "small", ids), logits_of(source, vocab[ids])[..., vocab]) < 1e-5


def prune(minitron: Run, model: Path, corpus: Path, out: Path, *more: Any) -> Any:
    return minitron("prune", model, "--vocab", KEPT, "--data", corpus, "-o", out, *more)


def test_the_whole_cut(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    """Kept text: equal ids and logits. Chat template, special ids, generation config, what transformers loads."""
    from transformers import AutoTokenizer, GenerationConfig

    out = tmp_path / "out"
    done = prune(minitron, model, corpus, out, "--check")
    assert done.code == 0, done.err
    assert "next: minitron distill" in done.out
    plan = read_plan(out)
    assert plan is not None
    kept = plan.kept["vocab"]
    place = {int(old): new for new, old in enumerate(kept)}
    before, after = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(out)
    compared = 0
    for text in [*made_text(20, seed=2), *made_text(60, seed=77, words=4)]:
        old, new = before(text).input_ids, after(text).input_ids
        assert after.decode(new) == before.decode(old) == text
        if all(i in place for i in old):
            assert new == [place[i] for i in old]
            compared += 1
            if compared == 1:
                ours, theirs = logits_of(out, torch.tensor([new])), logits_of(model, torch.tensor([old]))
                assert difference(ours, theirs[..., torch.as_tensor(kept)]) < 1e-5
    assert compared > 5
    chat = [{"role": "user", "content": "the of and"}, {"role": "assistant", "content": "to in is"}]
    for prompt in (True, False):
        old, new = (t.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"] for t in (before, after))
        assert [place[i] for i in old] == new
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(after, f"{role}_token") == getattr(before, f"{role}_token")
        assert getattr(after, f"{role}_token_id") == place[getattr(before, f"{role}_token_id")]
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == KEPT
    assert config["pad_token_id"] == place[5]
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == [place[2], place[600]]
    assert generation.suppress_tokens == [place[601]]
    assert verify(out, str(model)).problems == []


def test_generation_stops_at_the_same_token(minitron: Run, corpus: Path, tmp_path: Path) -> None:
    """A model whose every logit but that of the end is small ends at once, before the cut and after."""
    from transformers import AutoTokenizer

    source = make_toy("llama", tmp_path / "source", vocab_size=ROWS, tie_word_embeddings=False)
    save(backend("byte-level BPE"), source)
    stopping, prompt = load(source), AutoTokenizer.from_pretrained(source)("the", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = stopping.model(prompt).last_hidden_state[0, -1]
        stopping.lm_head.weight.zero_()
        stopping.lm_head.weight[2] = hidden
    stopping.generation_config.eos_token_id = 2
    stopping.save_pretrained(source)
    assert prune(minitron, source, corpus, tmp_path / "out").code == 0
    for path in (source, tmp_path / "out"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = tokenizer("the", return_tensors="pt").input_ids
        found = load(path).generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist()
        assert found == [tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", ["SentencePiece BPE", "Unigram"])
def test_other_kinds_through_transformers(kind: str, minitron: Run, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = make_toy("llama", tmp_path / "source", vocab_size=ROWS)
    save(backend(kind), source)
    (source / "tokenizer.model").write_bytes(b"of other ids")
    done = prune(minitron, source, corpus, tmp_path / "out", "--check")
    assert done.code == 0, done.err
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in made_text(20, seed=4):
        assert after.decode(after(text).input_ids) == before.decode(before(text).input_ids)


def test_a_dry_run_reports_and_writes_nothing(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    done = prune(minitron, model, corpus, tmp_path / "out", "--dry-run", "--json")
    facts = json.loads(done.out)
    assert facts["shape"]["vocab"] == [ROWS, KEPT]
    assert facts["respelling"].keys() == {"d0", "d1"}
    assert all(0 <= one["tokens_changed"] <= one["lengthening"] < 1 for one in facts["respelling"].values())
    assert not (tmp_path / "out").exists()
    shown = prune(minitron, model, corpus, tmp_path / "out", "--dry-run")
    assert "tokens that go" in shown.out


def test_the_report_shows_what_the_text_became(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tests.report.reading import Page

    out = tmp_path / "out"
    assert prune(minitron, model, corpus, out).code == 0
    assert minitron("report", out, "-o", tmp_path / "page.html").code == 0
    table = Page((tmp_path / "page.html").read_text()).table("The text that the tokens of out were counted on")
    before, after = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(out)
    for domain in ("d0", "d1"):
        texts = [one["text"] for one in map(json.loads, corpus.read_text().splitlines()) if one["domain"] == domain]
        size = sum(len(text.encode()) for text in texts)
        _, _, per_byte, smaller, *_ = table[domain]
        for shown, tokenizer in ((per_byte, before), (smaller, after)):
            # Every document ends with a token that spells nothing.
            tokens = sum(len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in texts)
            assert float(shown) == pytest.approx(tokens / size, rel=0.01)
        assert float(smaller) > float(per_byte)


def test_inspect_says_how_text_is_spelled(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    counted = json.loads(prune(minitron, model, corpus, tmp_path / "cut", "--json").out)
    other = tmp_path / "other.jsonl"
    found = minitron("inspect", tmp_path / "cut", "--source", model, "--data", corpus, "--json")
    assert json.loads(found.out)["text"] == counted["respelling"]
    texts = made_text(60, seed=8)
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = [("inspect", tmp_path / "cut", "--data", other), ("inspect", model, "--data", other)]
    spelled = [json.loads(minitron(*line, "--json").out)["text"]["other"] for line in lines]
    for one, place in zip(spelled, (tmp_path / "cut", model)):
        tokenizer = AutoTokenizer.from_pretrained(place)
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        assert one == {
            "tokens": sum(map(len, ids)) + len(texts),  # and a separator each
            "bytes": sum(len(text.encode()) for text in texts),
        }
    shares = json.loads(minitron(*lines[0], "--source", model, "--json").out)["text"]["other"]
    longer = spelled[0]["tokens"] - spelled[1]["tokens"]
    assert shares["lengthening"] * shares["tokens"] == pytest.approx(longer, rel=0.1)
    assert "bytes they spelled" in minitron(*lines[0], "--source", model).out
    refused = minitron("inspect", model, "--source", tmp_path / "cut", "--data", other)
    assert (refused.code, "is not a cut of" in refused.err) == (1, True)
    refused = minitron("inspect", tmp_path / "cut", "--source", model)
    assert (refused.code, "add --data" in refused.err) == (1, True)


def test_coverage_is_a_size_in_multiples(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    line = ("prune", model, "--vocab-coverage", "97%", "--multiple-of", 64, "--data", corpus, "-o", tmp_path / "out")
    done = minitron(*line, "--dry-run", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["shape"]["vocab"][1] % 64 == 0
    tokens = sum(one["tokens"] for one in facts["respelling"].values())
    changed = sum(one["tokens"] * one["tokens_changed"] for one in facts["respelling"].values()) / tokens
    assert changed <= 0.03


def test_together_with_other_axes(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    done = prune(minitron, model, corpus, tmp_path / "out", "--ffn", 56, "--samples", 4, "--seq-len", 32, "--check")
    assert done.code == 0, done.err
    assert read_plan(tmp_path / "out").kept.keys() == {"vocab", "ffn"}  # type: ignore[union-attr]
    assert verify(tmp_path / "out", str(model)).problems == []


@pytest.mark.parametrize(("options", "message"), [
    (("--vocab", 300), "--vocab needs text to count tokens on"),
    (("--vocab", 30, "--data", "CORPUS"), "--vocab 30 is too small"),
    (("--vocab", 3000, "--data", "CORPUS"), "larger than the source's"),
    (("--vocab-coverage", "2", "--data", "CORPUS"), "is not a share of the text"),
    (("--vocab-coverage", "0.9", "--vocab", 300, "--data", "CORPUS"), "--vocab-coverage chooses a size"),
    (("--ffn", 56, "--keep-tokens", "nowhere", "--data", "CORPUS"), "--keep-tokens is for a cut of the vocabulary"),
    (("--vocab", 512, "--keep-tokens", "nowhere", "--data", "CORPUS"), "--keep-tokens nowhere cannot be read"),
])  # fmt: skip
def test_what_does_not_work_is_said(
    minitron: Run, model: Path, corpus: Path, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    given = [corpus if word == "CORPUS" else word for word in options]
    done = minitron("prune", model, *given, "-o", tmp_path / "out")
    assert done.code == 1
    assert message in done.err
    assert "hint:" in done.err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_words_is_refused(minitron: Run, toy: Toy, corpus: Path, tmp_path: Path) -> None:
    done = minitron("prune", toy("llama"), "--vocab", 64, "--data", corpus, "-o", tmp_path / "out")
    assert done.code == 1
    assert "WordLevel" in done.err


def test_an_id_that_a_config_names_must_stay(model: Path, tmp_path: Path) -> None:
    plan = random_plan(model)
    without = np.setdiff1d(np.arange(ROWS), [2])[:KEPT]
    broken = Plan(plan.source, plan.target, {"vocab": without})
    with pytest.raises(MinitronError, match="token id 2 is named"):
        write_pruned(open_checkpoint(model), broken, tmp_path / "out")


def test_a_changed_tokenizer_does_not_verify(minitron: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    assert prune(minitron, model, corpus, tmp_path / "out").code == 0
    other = tmp_path / "other"
    shutil.copytree(model, other)
    save(byte_level(made_text(100, seed=8), SIZE), other)
    assert any("tokenizer.json" in problem for problem in verify(tmp_path / "out", str(other)).problems)


def test_learned_masks_have_no_place_for_a_vocabulary(model: Path, corpus: Path, tmp_path: Path) -> None:
    """Masks choose units of layers: the verb has no such option, and a run that asks for it is refused."""
    options = Options(
        verb="shear", student=str(model), data=(str(corpus),), output=str(tmp_path / "out"), sizes=("vocab=300",),
        steps=2, batch=1, seq_len=16,
    )  # fmt: skip
    with pytest.raises(MinitronError, match="learned masks do not choose tokens"):
        rehearse(options, 1)
