"""Training some of the weights: what changes and what does not, to the bit; what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.errors import MinitronError
from minitron_cli.hf.process_group import World
from minitron_cli.training.announce import memory
from minitron_cli.training.prepare import prepare
from minitron_cli.training.run import train
from tests.training.runs import options, signal_after

Toy = Callable[..., Path]
ALONE = World(0, 1, torch.device("cpu"))


def changed(before: Path, after: Path) -> set[str]:
    """The tensors on disk that differ."""
    one, other = (load_file(directory / "model.safetensors") for directory in (before, after))
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_only_the_routers_change_and_a_resumed_run_is_the_same(toy: Toy, text: Path, tmp_path: Path) -> None:
    student, teacher = toy("mixtral"), toy("mixtral", seed=5)
    given = {"train_only": ("mlp.gate",), "weight_decay": 0.5}
    train(options(student, text, tmp_path / "whole", teacher, **given))
    names = {name for name in open_checkpoint(student).tensors if ".gate." in name}
    assert names
    assert changed(student, tmp_path / "whole") == names

    line = options(student, text, tmp_path / "parts", teacher, **given)
    with signal_after(5):
        assert train(line).stopped_by
    with pytest.raises(MinitronError, match="--train-only"):
        train(options(student, text, tmp_path / "parts", teacher))
    train(line)
    assert not changed(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("given", "still"),
    [
        ({"freeze": ("mlp", "embed_tokens")}, ("mlp.", "embed_tokens", "lm_head")),
        ({"freeze": ("lm_head",)}, ("embed_tokens", "lm_head")),
        ({"train_only": ("layers.1", "model.norm"), "freeze": ("*norm*",)}, ("embed", "lm_head", "norm", "layers.0.")),
    ],
    ids=["mlp and embedding", "a tied head is the embedding", "both"],
)
def test_what_is_frozen_keeps_its_bits(
    given: dict, still: tuple[str, ...], toy: Toy, text: Path, tmp_path: Path
) -> None:
    student = toy("llama", tie_word_embeddings=True, num_hidden_layers=2)
    train(options(student, text, tmp_path / "out", steps=2, weight_decay=0.5, checkpoint_activations=True, **given))
    names = set(open_checkpoint(student).tensors)
    assert changed(student, tmp_path / "out") == {name for name in names if not any(part in name for part in still)}


def test_what_is_frozen_takes_no_moments(toy: Toy, text: Path, tmp_path: Path) -> None:
    student = toy("qwen3_moe")
    whole, some = (
        prepare(options(student, text, tmp_path / "out", **changes), ALONE)
        for changes in ({}, {"freeze": ("mlp.experts",)})
    )
    experts = sum(t.num_bytes for name, t in open_checkpoint(student).tensors.items() if ".experts." in name) // 4
    assert whole.trained - some.trained == experts
    assert memory(whole, ALONE).optimizer - memory(some, ALONE).optimizer == 8 * experts
    assert memory(whole, ALONE).weights == memory(some, ALONE).weights


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"train_only": ("mlp.gates",)}, "--train-only mlp.gates names no weight", "mlp.gate_proj"),
        ({"freeze": ("gate",)}, "--freeze gate names no weight", "self_attn.q_proj"),
        ({"freeze": ("*",)}, "nothing is left to train", "--freeze"),
        ({"train_only": ("mlp",), "freeze": ("layers",)}, "nothing is left to train", "--freeze"),
    ],
)
def test_refused(given: dict, message: str, hint: str, toy: Toy, text: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=message) as caught:
        prepare(options(toy("llama"), text, tmp_path / "out", **given), ALONE)
    assert hint in caught.value.hint
