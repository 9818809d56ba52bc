"""What layers with a state keep and compute, against their recurrences with every operation counted.

The shapes of states are those of vLLM's MambaStateShapeCalculator.
"""

from collections.abc import Callable

from minitron_cli.families import family_of
from minitron_cli.spec.search import Window, candidates
from minitron_cli.spec.shape import (
    kv_bytes_per_token,
    mlp_width,
    num_parameters,
    scan_flops_per_token,
    shape_of,
    state_bytes,
)
from tests.toys import toy_values


class Counted:
    """A number that counts the products and sums it is part of."""

    operations = 0

    def __add__(self, other: "Counted") -> "Counted":
        Counted.operations += 1
        return Counted()

    __mul__ = __sub__ = __add__


def _operations(recurrence: Callable[[], None]) -> int:
    Counted.operations = 0
    recurrence()
    return Counted.operations


def test_state_and_scan_of_mamba_layers() -> None:
    heads, dim, groups, states, taps = 4, 3, 2, 5, 4
    values = toy_values("nemotron_h") | {
        "mamba_num_heads": heads, "mamba_head_dim": dim, "n_groups": groups, "ssm_state_size": states,
        "conv_kernel": taps,
    }  # fmt: skip

    def recurrence() -> None:
        dt, decay, skip = Counted(), Counted(), Counted()
        for _ in range(heads * dim):
            x, y = Counted(), Counted()
            scaled = dt * x
            for _ in range(states):
                h = decay * Counted() + scaled * Counted()  # B
                y = y + h * Counted()  # C
            y = y + skip * x

    shape = shape_of(family_of("nemotron_h"), values)
    layers = len(shape.layers_of_kind("mamba"))
    assert layers == 2
    assert scan_flops_per_token(shape) == layers * _operations(recurrence)
    held = (heads * dim + 2 * groups * states) * (taps - 1) + heads * dim * states
    assert state_bytes(shape, 4) == layers * held * 4


def test_state_and_scan_of_linear_attention() -> None:
    values = toy_values("qwen3_5_text")
    keys, key_dim, heads, value_dim = (
        values[f"linear_{name}"] for name in ("num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim")
    )

    def recurrence() -> None:
        decay, beta = Counted(), Counted()
        for _ in range(heads * value_dim):
            states, seen, out = [Counted()] * key_dim, Counted(), Counted()
            decayed = [decay * state for state in states]
            for state in decayed:
                seen = seen + state * Counted()  # k
            step = beta * (Counted() - seen)
            for state in decayed:
                out = out + (state + step * Counted()) * Counted()  # k, q

    shape = shape_of(family_of("qwen3_5_text"), values)
    layers = len(shape.layers_of_kind("linear"))
    assert scan_flops_per_token(shape) == layers * _operations(recurrence)
    held = (2 * keys * key_dim + heads * value_dim) * (
        values["linear_conv_kernel_dim"] - 1
    ) + heads * value_dim * key_dim
    assert state_bytes(shape) == layers * held * 2


def test_convolutions_keep_their_last_inputs() -> None:
    shape = shape_of(family_of("lfm2"), toy_values("lfm2"))
    assert state_bytes(shape) == 2 * 48 * 2 * 2  # layers, channels, one fewer than three taps, bytes
    assert scan_flops_per_token(shape) == 0


def test_a_model_of_attention_alone_keeps_no_state() -> None:
    shape = shape_of(family_of("llama"), toy_values("llama"))
    assert state_bytes(shape) == scan_flops_per_token(shape) == 0


def test_a_memory_budget_holds_the_state_of_a_sequence() -> None:
    family, values = family_of("falcon_h1"), toy_values("falcon_h1")
    source = shape_of(family, values)
    half = source.with_(mamba_head=8)
    need = 2 * num_parameters(family.expected(values), half) + 10 * kv_bytes_per_token(half) + state_bytes(half)
    found = [
        candidates(family, values, source, {"mamba_head": [8]}, Window(0, 1e12, need - less, 10)) for less in (0, 1)
    ]
    assert [len(one) for one in found] == [1, 0]


def test_the_widest_layer_counts_the_neurons_that_a_token_passes_through() -> None:
    """Qwen2 has dense layers or experts beside a shared one, Granite 4 an MLP beside experts; Llama a dense MLP."""
    keys = ("intermediate_size", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    dense, active, inner, shared = (toy_values("qwen2_moe")[key] for key in keys)
    for width in (dense, 7):
        values = toy_values("qwen2_moe") | {"intermediate_size": width, "mlp_only_layers": [0]}
        assert mlp_width(shape_of(family_of("qwen2_moe"), values)) == max(width, active * inner + shared)
    values = toy_values("granitemoehybrid")
    both = values["shared_intermediate_size"] + values["num_experts_per_tok"] * values["intermediate_size"]
    assert mlp_width(shape_of(family_of("granitemoehybrid"), values)) == both
    assert mlp_width(shape_of(family_of("llama"), toy_values("llama"))) == toy_values("llama")["intermediate_size"]
