"""Names of devices and types, as flags give them."""

import pytest
import torch

from minitron_cli.errors import MinitronError
from minitron_cli.hf import devices
from minitron_cli.hf.devices import choose_device, choose_dtype, dtype_name
from minitron_cli.hf.process_group import World, join

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:-1", "cpu:x", "mps:0:1"])
def test_what_is_not_a_device_is_refused(name):
    with pytest.raises(MinitronError, match=r"--teacher-device .* is not a device"):
        choose_device(name, "--teacher-device")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_gpus_are_chosen_by_index_and_under_torchrun_by_local_rank(two_gpus, monkeypatch):
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        torch.device("cuda", 0), torch.device("cuda", 0), torch.device("cuda", 1), CPU,
    ]  # fmt: skip
    with pytest.raises(MinitronError, match="2 GPUs are visible"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert {choose_device(name) for name in ("auto", "cuda", "cuda:0")} == {torch.device("cuda", 1)}
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(MinitronError, match="2 GPUs are visible"):
        choose_device("auto")


def test_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(MinitronError, match="no GPU is visible"):
        choose_device("cuda")


def test_types(two_gpus):
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert {name: dtype_name(choose_dtype(name, CPU)) for name in devices.DTYPES} == {n: n for n in devices.DTYPES}
    with pytest.raises(MinitronError, match="--dtype 'int8' is unknown"):
        choose_dtype("int8", CPU)


def test_alone_every_agreement_is_the_own_value():
    with join("cpu") as world:
        assert world == World(0, 1, CPU)
        assert world.agree(7, True) == (7, True)
        assert world.share(5) == (0, 5)


def test_shares_are_contiguous_and_cover_all():
    shares = [World(rank, 3).share(8) for rank in range(3)]
    assert [index for begin, end in shares for index in range(begin, end)] == list(range(8))
    with pytest.raises(MinitronError, match="2 samples cannot be shared by 3 processes"):
        World(0, 3).share(2)
