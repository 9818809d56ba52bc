"""What stands between the last hidden state and the logits: weight, bias, scale, soft-cap, read from a HF model.

    raw = hidden @ weight.T + bias;  scaled = raw * scale;  logits = cap * tanh(scaled / cap), or scaled without a cap

The rules are those of the modeling files of transformers 5; `check_head` compares them with the model's `.logits`, so
that a family with another convention is refused instead of being distilled towards the wrong distribution.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minitron_cli.errors import MinitronError

# Rows of a head that are copied at a time: widened where no GEMM with a float32 result exists (the CPU), or selected.
_WIDEN_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """An output head: weight (V, H), bias (V,) or None, then the scale and the soft-cap of the family.

    With `rows` (n,) int64 its logits are those of these rows alone, in this order.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    rows: Tensor | None = None

    @property
    def vocab(self) -> int:
        """Its logits, padded ids included."""
        return len(self.weight if self.rows is None else self.rows)


def head_of(model: nn.Module) -> Head:
    """The head of a HF causal language model, as views of its parameters."""
    layer = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(layer, nn.Linear):
        raise MinitronError(
            f"{type(model).__name__} has no linear output head (found {type(layer).__name__})",
            "give a causal language model with an lm_head",
        )
    scale, softcap = logit_rule(model.config)
    return Head(layer.weight, layer.bias, scale, softcap)


def logit_rule(config: Any) -> tuple[float, float | None]:
    """(scale, soft-cap) a HF config asks for: Granite divides, Cohere multiplies, Gemma caps."""
    scale = 1.0
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        # The key has two meanings: Granite divides by it, HyperCLOVA X multiplies.
        scale = float(divisor) if config.model_type.startswith("hyperclovax") else 1.0 / float(divisor)
    for key in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, key, None)) is not None:
            scale *= float(factor)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, None if softcap is None else float(softcap)


@torch.no_grad()
def check_head(model: Any, label: str = "model") -> None:
    """Refuse a model whose `.logits` are not what `head_of` makes of its last hidden state (four tokens are run).

    Sharded or meta weights cannot be run here and are left alone: check before sharding.
    """
    weight = head_of(model).weight
    if weight.is_meta or type(weight.data) is not Tensor:
        return
    ids = torch.arange(1, 5, device=weight.device).remainder(weight.shape[0])[None]
    was_training = model.training
    model.eval()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    model.train(was_training)
    found = logits(hidden, head_of(model))
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    if not expected.isfinite().all():
        damaged = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
        more = f" and {len(damaged) - 3} more" if damaged[3:] else ""
        raise MinitronError(
            f"the {label}'s logits are NaN or infinite",
            f"so are weights of it: {', '.join(damaged[:3])}{more}; take a sound copy" if damaged
            else "all its weights are finite: try --dtype float32",
        )  # fmt: skip
    if not error < (1e-3 if expected.dtype == weight.dtype else 3e-2):
        raise MinitronError(
            f"the {label}'s logits ({model.config.model_type}) are not its head applied to its last hidden state: "
            f"relative difference {error:.2g}",
            "this family scales its logits in a way that is not known here",
        )


def logits(hidden: Tensor, head: Head, vocab: int | None = None) -> Tensor:
    """Logits in the compute dtype: hidden (c, H) -> (c, vocab); float32, or float64 for float64 input."""
    rows = head.vocab if vocab is None else vocab
    out = hidden.new_empty(hidden.shape[0], rows, dtype=compute_dtype(hidden))
    return logits_into(hidden, head, out)


def logits_into(hidden: Tensor, head: Head, out: Tensor) -> Tensor:
    """Write the logits of the first ids into `out` (c, vocab): straight from the GEMM, never rounded to bf16."""
    if hidden.device != out.device or head.weight.device != out.device:
        away = torch.empty(out.shape, dtype=out.dtype, device=head.weight.device)
        return out.copy_(logits_into(hidden.to(head.weight.device), head, away))
    rows = None if head.rows is None else head.rows[: out.shape[1]].to(out.device)
    _products_into(hidden, head.weight[: out.shape[1]] if rows is None else head.weight, rows, out)
    if head.bias is not None:
        out.add_(head.bias[: out.shape[1]] if rows is None else head.bias[rows])
    if head.scale != 1.0:
        out.mul_(head.scale)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)
    return out


def _products_into(hidden: Tensor, weight: Tensor, rows: Tensor | None, out: Tensor) -> None:
    """out (c, n) = hidden (c, H) @ weight (V, H)[rows]^T; selected or narrow rows are copied a few thousand at once."""
    if rows is None and weight.dtype == out.dtype:
        torch.mm(hidden.to(out.dtype), weight.t(), out=out)
    elif rows is None and out.is_cuda:
        torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=out.dtype, out=out)
    elif out.is_cuda and weight.dtype != out.dtype:
        for place, block in widened(weight, weight.dtype, rows):
            out[:, place] = torch.mm(hidden.to(weight.dtype), block.t(), out_dtype=out.dtype)
    else:
        wide = hidden.to(out.dtype)
        for place, block in widened(weight, out.dtype, rows):
            torch.mm(wide, block.t(), out=out[:, place])


def widened(weight: Tensor, dtype: torch.dtype, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a weight, all or those of `rows`, in `dtype`: a few thousand at a time in one reused buffer."""
    count = len(weight) if rows is None else len(rows)
    buffer = torch.empty(min(_WIDEN_ROWS, count), weight.shape[1], dtype=dtype, device=weight.device)
    for start in range(0, count, _WIDEN_ROWS):
        place = slice(start, min(start + _WIDEN_ROWS, count))
        found = weight[place] if rows is None else weight[rows[place]]
        yield place, buffer[: place.stop - start].copy_(found)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """float32 for every training dtype: a bf16 softmax spoils the gradient near convergence. float64 stays."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
