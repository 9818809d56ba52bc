"""Perplexity against transformers' own loss, plain softmax formulas and the known figures of the real checkpoint."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.data.tokens import TokenFile
from minitron_cli.errors import MinitronError
from minitron_cli.evaluate import perplexity as module
from minitron_cli.evaluate.model import load_model
from minitron_cli.evaluate.perplexity import add, perplexity, token_losses

SEQ = 32


def model_of(path: Path) -> torch.nn.Module:
    return load_model(path, device="cpu").model


def test_the_whole_is_transformers_loss(toy, token_file: TokenFile) -> None:
    model = model_of(toy("llama"))
    total = add(list(perplexity(model, token_file, seq_len=SEQ).values()))
    losses = []
    for index in range(token_file.num_windows(SEQ)):
        ids = torch.from_numpy(token_file.windows(np.array([index]), SEQ)[0])[None]
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert total.tokens == len(losses) * (SEQ - 1)
    assert total.nats_per_token == pytest.approx(np.mean(losses), rel=1e-6)


def test_domains_and_bytes_by_hand(toy, token_file: TokenFile) -> None:
    model = model_of(toy("llama"))
    found = perplexity(model, token_file, seq_len=SEQ)
    sums = {name: [0, 0.0, 0.0] for name in token_file.header.domains}
    ends = [int(end) for end in token_file.documents["end"]]
    byte_ends = [int(end) for end in token_file.documents["byte_end"]]
    for index in range(token_file.num_windows(SEQ)):
        ids = torch.from_numpy(token_file.windows(np.array([index]), SEQ)[0])
        log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for t in range(1, SEQ):
            place = index * SEQ + t
            document = next(i for i, end in enumerate(ends) if place < end)
            first, first_byte = (ends[document - 1], byte_ends[document - 1]) if document else (0, 0)
            of = sums[token_file.header.domains[int(token_file.documents["domain"][document])]]
            of[0] += 1
            of[1] -= log_probs[t - 1, ids[t]].item()
            of[2] += (byte_ends[document] - first_byte) / (ends[document] - first)
    assert set(found) == {"ascii", "accents"}
    for name, (tokens, nats, num_bytes) in sums.items():
        assert found[name].tokens == tokens
        assert found[name].nats == pytest.approx(nats, rel=1e-5)
        assert found[name].to_json()["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_the_first_windows_of_each_domain(toy, token_file: TokenFile) -> None:
    model = model_of(toy("llama"))
    found = perplexity(model, token_file, seq_len=SEQ, max_windows=2)
    begins = [int(token_file.domain_numbers(np.array([i]), SEQ)[0, 0]) for i in range(token_file.num_windows(SEQ))]
    read = [i for i, domain in enumerate(begins) if begins[:i].count(domain) < 2]
    assert len(set(begins)) == 2
    assert len(read) == 4 < len(begins)
    ids = torch.from_numpy(token_file.windows(np.array(read), SEQ))
    assert add(list(found.values())).nats == pytest.approx(float(token_losses(model, ids)[0].sum()), rel=1e-6)


def test_blocks_are_runs_of_windows(toy, token_file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(toy("llama"))
    windows = token_file.num_windows(SEQ)
    single = add(list(perplexity(model, token_file, seq_len=SEQ).values()))
    assert single.blocks.shape == (2, windows)
    monkeypatch.setattr(module, "MOST_BLOCKS", 3)
    found = perplexity(model, token_file, seq_len=SEQ, batch_size=2)
    total = add(list(found.values()))
    groups = np.array_split(np.arange(windows), [math.ceil(windows * k / 3) for k in (1, 2)])
    expected = [[single.blocks[row, group].sum() for group in groups] for row in (0, 1)]
    np.testing.assert_allclose(total.blocks, expected)
    for loss in found.values():
        assert loss.blocks.sum(1).tolist() == pytest.approx([loss.tokens, loss.nats])


def test_batches_and_chunks_do_not_matter(toy, token_file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = model_of(toy("llama")), model_of(toy("llama", num_hidden_layers=2))
    one = perplexity(model, token_file, seq_len=SEQ, batch_size=1)
    for budget in (97 * SEQ * 2, 97 * 5, 1):  # a few rows, a few positions, one position at a time
        monkeypatch.setattr(module, "_LOGIT_BUDGET", budget)
        many = perplexity(model, token_file, seq_len=SEQ, batch_size=7, reference=other)
        for domain, loss in perplexity(model, token_file, seq_len=SEQ, reference=other).items():
            assert (many[domain].tokens, many[domain].agreements) == (loss.tokens, loss.agreements)
            assert many[domain].nats == pytest.approx(one[domain].nats, rel=1e-6)
            assert many[domain].kl == pytest.approx(loss.kl, rel=1e-6)


def test_kl_and_agreement_against_the_formula(toy, token_file: TokenFile) -> None:
    model, other = model_of(toy("llama")), model_of(toy("llama", num_hidden_layers=2))
    ids = torch.from_numpy(token_file.windows(np.arange(3), SEQ))
    _, kl, agree = token_losses(model, ids, other)
    p = torch.softmax(other(input_ids=ids).logits, -1)[:, :-1].double()
    q = torch.softmax(model(input_ids=ids).logits, -1)[:, :-1].double()
    np.testing.assert_allclose(kl, (p * (p / q).log()).sum(-1).detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(agree, (p.argmax(-1) == q.argmax(-1)).double())
    assert kl.mean() > 0.01  # they do differ
    same = add(list(perplexity(model, token_file, seq_len=SEQ, reference=model).values())).to_json()
    assert same["kl"] == pytest.approx(0.0, abs=1e-9)
    assert same["top1_agreement"] == 1.0


def test_too_little_text_is_an_error(toy, token_file: TokenFile) -> None:
    with pytest.raises(MinitronError, match="less than one window"):
        perplexity(model_of(toy("llama")), token_file, seq_len=1 << 20)


def test_the_real_checkpoint_has_its_known_loss(shared_data: Path, tmp_path: Path) -> None:
    sources = parse_sources([str(shared_data / "stories_eval.jsonl")])
    file = token_files(sources, shared_data / "stories260K", separator="bos", cache_dir=tmp_path)[0]
    model = model_of(shared_data / "stories260K")
    (loss,) = perplexity(model, file, seq_len=128, max_windows=128).values()
    assert round(loss.nats_per_token, 4) == 1.5255
