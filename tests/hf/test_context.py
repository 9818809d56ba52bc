"""One rule for the length of a sequence."""

import pytest

from minitron_cli.errors import MinitronError
from minitron_cli.hf.context import context_length, sequence_length


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 128}, 128),
        ({"n_positions": 64}, 64),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_the_context_of_a_config(config, context):
    assert context_length(config) == context


@pytest.mark.parametrize("value", [0, -5, "many", 1.5, True])
def test_a_context_that_is_no_count_is_refused(value):
    with pytest.raises(MinitronError, match=r"max_position_embeddings is .*, not a number of positions"):
        context_length({"max_position_embeddings": value})


def test_without_a_wish_the_shortest_context_counts_up_to_the_usual_length():
    assert sequence_length(None, 4096, {"student": 8192, "teacher": None}) == 4096
    assert sequence_length(None, 4096, {"student": 8192, "teacher": 2048}) == 2048


def test_a_wish_must_fit_every_model():
    assert sequence_length(2048, 4096, {"student": 8192, "teacher": 2048}) == 2048
    with pytest.raises(MinitronError, match=r"--seq-len 4096 is longer than the context of teacher \(2048 positions\)"):
        sequence_length(4096, 4096, {"student": 8192, "teacher": 2048})
