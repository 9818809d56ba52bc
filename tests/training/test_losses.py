"""The fused losses against autograd: finite differences, the naive twins, and the invariances of a sum over tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.training.cached_logits.topk import TopK, record
from minitron_cli.training.fused import LossSums
from minitron_cli.training.head import Head
from minitron_cli.training.losses import Teacher, fused_cached_distillation, fused_cross_entropy, fused_distillation
from minitron_cli.training.objectives import KINDS, Divergence
from tests.training.naive import naive_cross_entropy, naive_distillation, naive_topk_distillation

N, V, HS, HT = 7, 11, 3, 5


def make(seed: int = 0, tokens: int = N, dtype: torch.dtype = torch.float64, **rule: Any) -> dict[str, Any]:
    """A random case: student states and head, one teacher, targets, and weights with a zero among them."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    weights = torch.rand(tokens, generator=g, dtype=dtype) + 0.1
    weights[tokens // 2] = 0
    return {
        "hidden": rand(tokens, HS).requires_grad_(),
        "head": Head(rand(V, HS).requires_grad_(), rand(V).requires_grad_(), **rule),
        "teachers": [Teacher(rand(tokens, HT), Head(rand(V, HT), rand(V), **rule))],
        "targets": torch.randint(0, V, (tokens,), generator=g),
        "weights": weights,
    }


def inputs(case: dict[str, Any]) -> list[Tensor]:
    return [case["hidden"], case["head"].weight, case["head"].bias]


def gradients(sums: LossSums, case: dict[str, Any], retain_graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(sums.loss, inputs(case), retain_graph=retain_graph))


def distil(function: Any, case: dict[str, Any], **options: Any) -> LossSums:
    return function(case["hidden"], case["head"], case["teachers"], case["weights"], targets=case["targets"], **options)


def topk(function: Any, case: dict[str, Any], k: int = 3, **options: Any) -> LossSums:
    teacher, div = case["teachers"][0], options.get("div", Divergence())
    cache = record(teacher.hidden, teacher.head, k, div.temperature, options.get("vocab"))
    return function(case["hidden"], case["head"], cache, case["weights"], targets=case["targets"], **options)


def assert_same(a: LossSums, b: LossSums, case: dict[str, Any], rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a[:3], b[:3], rtol=rtol, atol=atol)
    for x, y in zip(gradients(a, case), gradients(b, case, retain_graph=True)):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


OPTIONS = [
    pytest.param({}, {}, id="plain"),
    pytest.param({}, {"ce_weight": 0.3}, id="ce"),
    pytest.param({}, {"kd_weight": 0.4, "ce_weight": 0.3, "div": Divergence(temperature=2.5)}, id="temperature-ce"),
    pytest.param({"softcap": 1.5}, {"ce_weight": 0.3}, id="softcap"),
    pytest.param({"softcap": 1.5, "scale": 0.7}, {"div": Divergence(temperature=0.5)}, id="softcap-scale-temperature"),
    pytest.param({}, {"vocab": 8, "chunk_tokens": 4}, id="slice-ragged"),
    *[pytest.param({}, {"div": Divergence(kind, 1.7, 0.3), "ce_weight": 0.2}, id=kind) for kind in KINDS],
]


@pytest.mark.parametrize("op", [distil, topk])
@pytest.mark.parametrize(("rule", "options"), OPTIONS)
def test_gradient_is_the_finite_difference(op: Any, rule: dict[str, Any], options: dict[str, Any]) -> None:
    case = make(**rule)
    case["targets"] %= options.get("vocab", V)
    function = fused_distillation if op is distil else fused_cached_distillation

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Times 3: the upstream gradient is not 1.
        head = replace(case["head"], weight=weight, bias=bias)
        return 3.0 * op(function, {**case, "hidden": hidden, "head": head}, retain_graph=True, **options).loss

    torch.autograd.gradcheck(loss, inputs(case))


@pytest.mark.parametrize(("rule", "options"), OPTIONS)
@pytest.mark.parametrize(
    ("op", "fused", "naive"),
    [(distil, fused_distillation, naive_distillation), (topk, fused_cached_distillation, naive_topk_distillation)],
    ids=["full", "topk"],
)
def test_fused_is_naive(op: Any, fused: Any, naive: Any, rule: dict[str, Any], options: dict[str, Any]) -> None:
    case = make(**rule)
    case["targets"] %= options.get("vocab", V)
    assert_same(op(fused, case, **options), op(naive, case, **options), case)


def test_cross_entropy_is_naive_and_finite_difference() -> None:
    case = make(softcap=2.0, scale=0.5)
    args = (case["targets"], case["weights"])
    fused = fused_cross_entropy(case["hidden"], case["head"], *args, chunk_tokens=3)
    assert_same(fused, naive_cross_entropy(case["hidden"], case["head"], *args), case)


def test_float32_is_as_near_to_float64_as_the_gemm_allows() -> None:
    """Logits of ordinary size over thousands of ids: the naive loss in float32 is no nearer."""
    torch.manual_seed(0)
    n, v, h = 256, 8192, 32
    hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    teacher = Teacher(hidden.detach() + 0.1 * torch.randn(n, h), Head(weight.detach()))
    weights = torch.full((n,), 1 / n)
    fused = fused_distillation(hidden, Head(weight), [teacher], weights)
    got = torch.autograd.grad(fused.loss, [hidden, weight])
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    wide_teacher = Teacher(teacher.hidden.double(), Head(teacher.head.weight.double()))
    exact = naive_distillation(wide[0], Head(wide[1]), [wide_teacher], weights.double())
    assert fused.loss.dtype == torch.float32
    assert fused.loss.item() == pytest.approx(exact.loss.item(), rel=3e-6)
    naive = torch.autograd.grad(naive_distillation(hidden, Head(weight), [teacher], weights).loss, [hidden, weight])
    for found, usual, expected in zip(got, naive, torch.autograd.grad(exact.loss, wide)):
        assert (found - expected).norm() < 1.2 * (usual - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind: str) -> None:
    case = make(tokens=13)
    options = {"div": Divergence(kind), "ce_weight": 0.5}
    whole = distil(fused_distillation, case, chunk_tokens=13, retain_graph=True, **options)
    for chunk in (1, 4, 5):
        assert_same(distil(fused_distillation, case, chunk_tokens=chunk, **options), whole, case)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(tokens=13)
    whole = distil(fused_distillation, case)
    monkeypatch.setattr("minitron_cli.training.fused._BLOCK_BYTES", {"cpu": 3 * 8 * V})
    assert_same(distil(fused_distillation, case), whole, case)


def test_micro_batches_add_up() -> None:
    """Weights are mask / global tokens, so the parts of a batch sum to the batch: unequal parts, no other scaling."""
    case = make(tokens=12)
    whole = distil(fused_distillation, case, ce_weight=0.5)
    expected = gradients(whole, case)
    totals = [torch.zeros_like(g) for g in expected]
    loss = 0.0
    for rows in (slice(0, 3), slice(3, 12)):
        teacher = case["teachers"][0]
        part = {
            **case,
            "hidden": case["hidden"][rows],
            "teachers": [replace(teacher, hidden=teacher.hidden[rows])],
            **{key: case[key][rows] for key in ("targets", "weights")},
        }
        sums = distil(fused_distillation, part, ce_weight=0.5)
        loss += sums.loss.item()
        for total, grad in zip(totals, torch.autograd.grad(sums.loss, inputs(case))):
            total += grad
    assert loss == pytest.approx(whole.loss.item())
    torch.testing.assert_close(totals, expected)


def test_masked_tokens_are_dropped_even_when_they_are_nan() -> None:
    case = make(tokens=9)
    masked = case["weights"] == 0
    clean = distil(fused_distillation, case, ce_weight=1.0)
    expected = gradients(clean, case)
    hidden = torch.where(masked[:, None], torch.nan, case["hidden"].detach()).requires_grad_()
    dirty = {**case, "hidden": hidden}
    sums = distil(fused_distillation, dirty, ce_weight=1.0)
    torch.testing.assert_close(gradients(sums, dirty), expected, rtol=0, atol=0)
    assert sums.loss == clean.loss
    assert (expected[0][masked] == 0).all()


def test_every_token_masked() -> None:
    case = make()
    case["weights"] = torch.zeros(N, dtype=torch.float64)
    sums = distil(fused_distillation, case)
    assert sums.loss == 0
    assert all((g == 0).all() for g in gradients(sums, case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_student_that_is_the_teacher_has_loss_and_gradient_exactly_zero(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16).to(dtype).requires_grad_(), torch.randn(301, 16).to(dtype).requires_grad_()
    teacher = Teacher(hidden.detach().clone(), Head(weight.detach().clone()))
    sums = fused_distillation(hidden, Head(weight), [teacher], torch.ones(50), chunk_tokens=16)
    assert sums.loss == 0
    for grad, like in zip(torch.autograd.grad(sums.loss, [hidden, weight]), (hidden, weight)):
        assert grad.dtype == like.dtype
        assert (grad == 0).all()


def test_bf16_inputs_lose_nothing_in_the_softmax() -> None:
    """bf16 states and heads: the gradient is that of float32 arithmetic on the same numbers, rounded once."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(9000, 32).bfloat16()
    # A student close to its teacher: where rounding the logits to bf16 costs most.
    teacher = Teacher((hidden + 0.02 * torch.randn(64, 32)).bfloat16(), Head(weight))

    def run(function: Any, cast: torch.dtype) -> list[Tensor]:
        h, w = hidden.to(cast).requires_grad_(), weight.to(cast).requires_grad_()
        wide = Teacher(teacher.hidden.to(cast), Head(weight.to(cast)))
        return list(torch.autograd.grad(function(h, Head(w), [wide], torch.ones(64)).loss, [h, w]))

    for narrow, wide in zip(run(fused_distillation, torch.bfloat16), run(naive_distillation, torch.float32)):
        torch.testing.assert_close(narrow.float(), wide, rtol=2**-7, atol=1e-5 * wide.abs().max().item())


def test_upstream_gradient_without_retain() -> None:
    case = make()
    once = gradients(distil(fused_distillation, case), case)
    scaled = torch.autograd.grad(2.5 * distil(fused_distillation, case).loss, inputs(case))
    torch.testing.assert_close(list(scaled), [2.5 * g for g in once])


def test_second_backward_is_refused_not_wrong() -> None:
    case = make()
    sums = distil(fused_distillation, case)
    sums.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        sums.loss.backward()


def test_forward_only_makes_no_gradient() -> None:
    case = make()
    trained = distil(fused_distillation, case, agreement=True)
    with torch.no_grad():
        evaluated = distil(fused_distillation, case, agreement=True)
    assert not evaluated.loss.requires_grad
    torch.testing.assert_close([t.detach() for t in trained], list(evaluated))


def test_only_what_asks_gets_a_gradient() -> None:
    case = make()
    frozen = {**case, "head": Head(case["head"].weight.detach(), case["head"].bias)}
    sums = distil(fused_distillation, frozen)
    both = gradients(distil(fused_distillation, case), case)
    found = torch.autograd.grad(sums.loss, [frozen["hidden"], frozen["head"].bias])
    torch.testing.assert_close(list(found), [both[0], both[2]])


def test_agreement_counts_equal_argmaxes_by_weight() -> None:
    case = make(tokens=40)
    fused = distil(fused_distillation, case, agreement=True)
    assert 0 < fused.agreement < case["weights"].sum()
    torch.testing.assert_close(fused.agreement, distil(naive_distillation, case, agreement=True).agreement)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"soft_ce"}))
def test_several_teachers_mix_probabilities(kind: str) -> None:
    case, other = make(0), make(1)
    case["teachers"] = [replace(case["teachers"][0], share=3.0), other["teachers"][0]]
    options = {"div": Divergence(kind, 1.3), "ce_weight": 0.1}
    assert_same(distil(fused_distillation, case, **options), distil(naive_distillation, case, **options), case)
    # Negative control: the mean of the two losses is another number (but for soft_ce, which is linear in q).
    apart = [distil(fused_distillation, {**case, "teachers": [t]}, **options).kd.item() for t in case["teachers"]]
    assert distil(fused_distillation, case, **options).kd.item() != pytest.approx(
        0.75 * apart[0] + 0.25 * apart[1], rel=1e-3
    )


def test_forward_kl_is_torch_kl_div_and_soft_ce_differs_by_the_entropy() -> None:
    case = make()
    logit = [h @ head.weight.T + head.bias for h, head in ((case["hidden"], case["head"]), _pair(case))]
    expected = torch.nn.functional.kl_div(
        logit[0].log_softmax(-1), logit[1].log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(distil(fused_distillation, case).kd, (expected * case["weights"]).sum().detach())
    entropy = (torch.distributions.Categorical(logits=logit[1]).entropy() * case["weights"]).sum()
    soft = distil(fused_distillation, case, div=Divergence("soft_ce")).kd
    torch.testing.assert_close(soft, (distil(fused_distillation, case).kd + entropy).detach())


def _pair(case: dict[str, Any]) -> tuple[Tensor, Head]:
    teacher = case["teachers"][0]
    return teacher.hidden, teacher.head


def test_vocabulary_slice_is_the_divergence_of_the_sliced_heads() -> None:
    """Heads padded differently: both are cut to the shared ids; the padded rows get gradient 0, no probability."""
    case = make()
    padded = Head(
        torch.cat([case["teachers"][0].head.weight, torch.full((5, HT), 9.0, dtype=torch.float64)]),
        torch.cat([case["teachers"][0].head.bias, torch.full((5,), 9.0, dtype=torch.float64)]),
    )
    uneven = {**case, "teachers": [replace(case["teachers"][0], head=padded)]}
    assert_same(distil(fused_distillation, uneven, vocab=V), distil(fused_distillation, case), case)
    with pytest.raises(MinitronError, match=f"{V} and {V + 5} rows"):
        distil(fused_distillation, uneven)
    with pytest.raises(MinitronError, match=f"cannot compare {V + 1} ids"):
        distil(fused_distillation, uneven, vocab=V + 1)
    short = gradients(distil(fused_distillation, {**case, "targets": case["targets"] % 8}, vocab=8), case)
    assert (short[1][8:] == 0).all()
    assert (short[1][:8] != 0).any()


def test_top_k_of_all_ids_is_the_full_divergence() -> None:
    case = make()
    full = distil(fused_distillation, case)
    assert_same(topk(fused_cached_distillation, case, k=V), full, case, rtol=1e-7, atol=1e-9)
    # With a tail, the bucketed divergence is a lower bound (data processing inequality), and not 0.
    assert 0 < topk(fused_cached_distillation, case, k=3).kd < full.kd


def test_record_keeps_the_mass_of_the_tail() -> None:
    case = make()
    cache: TopK = record(*_pair(case), k=4, temperature=1.5, chunk=3)
    whole = torch.log_softmax((_pair(case)[0] @ _pair(case)[1].weight.T + _pair(case)[1].bias) / 1.5, -1)
    torch.testing.assert_close(cache.log_probs, whole.topk(4).values)
    torch.testing.assert_close(cache.log_probs.exp().sum(-1) + cache.tail.exp(), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make_bad", "names"),
    [
        (lambda: Divergence("forward"), "forward"),
        (lambda: Divergence(temperature=0.0), "temperature is 0.0"),
        (lambda: Divergence("jsd", beta=1.0), "1.0"),
    ],
)
def test_nonsense_is_refused_by_name(make_bad: Any, names: str) -> None:
    with pytest.raises(MinitronError, match=names):
        make_bad()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_in_bf16_is_float32_arithmetic_on_the_same_numbers(kind: str) -> None:
    """Logits and dW leave the GEMMs in float32; only the slope is rounded to bf16 on its way into them."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64), torch.randn(5000, 64)
    taught = hidden + 0.1 * torch.randn(300, 64)
    options = {"div": Divergence(kind), "targets": torch.randint(0, 5000, (300,), device="cuda"), "ce_weight": 0.1}

    def run(function: Any, cast: torch.dtype, **more: Any) -> tuple[Tensor, ...]:
        h, w, t = (x.cuda().bfloat16().to(cast) for x in (hidden, weight, taught))
        h.requires_grad_(), w.requires_grad_()
        sums = function(h, Head(w), [Teacher(t, Head(w.detach()))], torch.ones(300, device="cuda"), **options, **more)
        return sums.loss.detach(), *torch.autograd.grad(sums.loss, [h, w])

    expected = run(naive_distillation, torch.float32)
    for found, exact in zip(run(fused_distillation, torch.bfloat16, chunk_tokens=128), expected):
        assert (found.float() - exact).norm() < 5e-3 * exact.norm()
