"""Options: what is refused, what identifies a run, and how presets, typed values and defaults mix."""

import re
from dataclasses import replace

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.training.defaults import fill_sharding
from minitron_cli.training.options import Options, check, differences, from_json, to_json
from minitron_cli.training.presets import PRESETS, resolve

BASE = Options(verb="distill", student="s", data=("d",), output="o", teacher=("t",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "--lr must be above 0; got 0.0"),
        ({"lr": float("nan")}, "--lr must be above 0"),
        ({"min_lr": 1.0}, "--min-lr must be at most --lr (0.0001); got 1.0"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"seq_len": 1}, "--seq-len must be at least 2"),
        ({"schedule": "cosin"}, "--schedule must be one of cosine, linear, constant, wsd; got 'cosin'"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"ce_weight": -0.5}, "--ce-weight must be at least 0; got -0.5"),
        ({"steps": 1, "tokens": 1}, "--steps and --tokens"),
        ({"teacher": ()}, "distill needs a teacher"),
        ({"shard_teacher": True, "teacher_device": "cpu"}, "leave out --teacher-device cpu"),
        ({"branch_from": "x"}, "needs --schedule wsd"),
        ({"schedule": "wsd", "decay": "exponential", "min_lr": 0.0}, "above 0 for an exponential decay"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(MinitronError, match=re.escape(message)):
        check(replace(BASE, **change))


def test_teachers_are_sharded_where_there_are_several_ranks() -> None:
    assert [fill_sharding(BASE, ranks).shard_teacher for ranks in (1, 2)] == [False, True]
    assert fill_sharding(replace(BASE, teacher_device="cpu"), 2).shard_teacher is False
    for asked in (True, False):
        assert fill_sharding(replace(BASE, shard_teacher=asked), 2).shard_teacher is asked


def test_every_offender_is_named_at_once() -> None:
    with pytest.raises(MinitronError) as caught:
        check(replace(BASE, lr=-1.0, keep=0, dtype="int8"))
    assert all(word in caught.value.message for word in ("--lr", "--keep", "--dtype"))


def test_defaults_pass() -> None:
    check(BASE)


def test_json_round_trip() -> None:
    assert from_json(to_json(BASE)) == BASE
    with pytest.raises(MinitronError, match=r"unknown training options.*nonsense"):
        from_json({**to_json(BASE), "nonsense": 1})


def test_identity_names_what_differs_and_ignores_where_it_runs() -> None:
    assert differences(BASE, replace(BASE, device="cuda", micro_batch=4, save_every=7, student="elsewhere")) == []
    assert differences(BASE, replace(BASE, lr=2e-4, seed=3)) == ["--seed 0 -> 3", "--lr 0.0001 -> 0.0002"]


def test_only_runs_with_masks_differ_in_what_masks_take() -> None:
    longer = replace(BASE, steps=40, mask_warmup=8)
    assert differences(replace(BASE, steps=30, mask_warmup=6), longer) == ["--steps 30 -> 40"]
    sheared = replace(longer, verb="shear")
    assert differences(sheared, replace(sheared, mask_warmup=6)) == ["--mask-warmup 8 -> 6"]


def resolved(preset: str | None, **typed: object) -> Options:
    return resolve(
        {"verb": "distill", "student": "s", "data": ("d",), "output": "o", "teacher": ("t",), **typed}, preset
    )


def test_preset_values_and_overrides() -> None:
    options = resolved("llama-3.1-minitron", lr=5e-5)
    assert (options.lr, options.min_lr, options.warmup, options.batch, options.seq_len) == (5e-5, 1e-5, 40, 1152, 8192)
    assert options.tokens == 94_000_000_000


def test_typing_steps_drops_the_presets_tokens() -> None:
    options = resolved("mn-minitron", steps=100)
    assert (options.steps, options.tokens) == (100, None)


def test_a_rate_below_the_presets_floor_drops_the_floor() -> None:
    options = resolved("llama-3.1-minitron", lr=1e-6)
    assert options.floor_lr() == pytest.approx(1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound(name: str) -> None:
    check(resolved(name))


def test_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(MinitronError) as caught:
        resolved("llama-3-minitron")
    assert "llama-3.1-minitron" in caught.value.hint
