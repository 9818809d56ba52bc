"""The step against the models' own logits and states: what is compared, how it is weighted, what is trained."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from minitron_cli.errors import MinitronError
from minitron_cli.training import optimizer
from minitron_cli.training.cached_logits.topk import record
from minitron_cli.training.head import head_of
from minitron_cli.training.objectives import Divergence, Objective, auto_terms, build_objective, resolve_layer_map
from minitron_cli.training.step import KDStep, kd_step
from minitron_cli.training.student import compile_blocks, projection
from minitron_cli.training.terms import Context, Logits, ParamGroup, Requests, Term
from tests.training.naive import naive_step

VOCAB = 61


def llama(hidden: int, layers: int, seed: int = 0, **options: Any) -> LlamaForCausalLM:
    """A small random Llama whose logits are far from uniform and whose norm gains are not 1."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **{"vocab_size": VOCAB, "tie_word_embeddings": False, **options},
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.ndim == 2 else nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def batch(rows: int = 3, length: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids (rows, length) and weights mask / tokens, some tokens masked."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=g) > 0.2).float()
    mask[:, -1] = 0
    return torch.randint(0, VOCAB, (rows, length), generator=g), mask / mask.sum()


def gradients(step: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*step.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True)))


@pytest.fixture
def pair() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    return llama(24, 4, seed=1), llama(32, 5, seed=2)


def test_terms_are_those_of_the_models_own_logits(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    ids, weights = batch()
    terms = kd_step(student, teacher, Objective(ce_weight=0.5))(ids, weights)
    log_p, log_q = (m(ids).logits.log_softmax(-1) for m in pair)
    kd = (F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1) * weights).sum()
    ce = (F.cross_entropy(log_p[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") * weights[:, :-1]).sum()
    torch.testing.assert_close(terms["kd"], kd.detach())
    torch.testing.assert_close(terms["ce"], ce.detach())
    torch.testing.assert_close(terms["loss"], kd + 0.5 * ce)
    expected = torch.autograd.grad(kd + 0.5 * ce, list(student.parameters()))
    for found, grad in zip(gradients(student, terms["loss"]).values(), expected):
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-7)


def test_without_a_teacher_it_is_the_models_own_loss(pair: tuple[nn.Module, nn.Module]) -> None:
    ids, _ = batch()
    weights = torch.full(ids.shape, 1 / (ids.numel() - len(ids)))
    weights[:, -1] = 0
    terms = kd_step(pair[0])(ids, weights)
    assert set(terms) == {"loss", "ce"}
    torch.testing.assert_close(terms["loss"], pair[0](ids, labels=ids).loss)


def test_teacher_is_frozen_and_not_part_of_the_module(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    step = kd_step(student, teacher, build_objective("logits+hidden+embedding", 4, 5)).train()
    assert not teacher.training
    mine = {id(p) for p in teacher.parameters()}
    assert not any(id(p) in mine for p in step.parameters())
    assert {name.split(".")[0] for name in step.state_dict()} == {"student", "states"}
    step(*batch())["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_measuring_reports_agreement_and_makes_no_graph(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    ids, weights = batch()
    with torch.no_grad():
        terms = kd_step(student, teacher, Objective(Divergence(temperature=2.0)))(ids, weights)
    assert set(terms) == {"loss", "kd", "ce", "agreement"}
    same = student(ids).logits.argmax(-1) == teacher(ids).logits.argmax(-1)
    torch.testing.assert_close(terms["agreement"], (same * weights).sum())
    assert not terms["loss"].requires_grad


OBJECTIVES: list[Any] = [
    pytest.param(lambda: Objective(), id="logits"),
    pytest.param(lambda: Objective(ce_weight=0.3, layer_map=((1, 2), (2, 3)), embedding=True, alpha=0.7), id="all"),
    pytest.param(lambda: Objective(layer_map=((3, 4),), metric="mse", alpha=2.0), id="last-mse"),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_add_up(pair: tuple[nn.Module, nn.Module], objective: Callable[[], Objective]) -> None:
    step = kd_step(*pair, objective())
    ids, weights = batch(rows=4)
    whole = step(ids, weights)
    expected = gradients(step, whole["loss"])
    parts = [step(ids[rows], weights[rows]) for rows in (slice(0, 1), slice(1, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    found = [gradients(step, part["loss"]) for part in parts]
    for name, grad in expected.items():
        torch.testing.assert_close(found[0][name] + found[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_changes_nothing(pair: tuple[nn.Module, nn.Module], objective: Callable[[], Objective]) -> None:
    step = kd_step(*pair, objective())
    ids, weights = batch()
    padded = step(F.pad(ids, (0, 5), value=7), F.pad(weights, (0, 5)))
    for name, value in step(ids, weights).items():
        torch.testing.assert_close(padded[name], value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_naive_is_fused(pair: tuple[nn.Module, nn.Module], objective: Callable[[], Objective]) -> None:
    ids, weights = batch()
    fused, obvious = (make(*pair, objective(), seed=1) for make in (kd_step, naive_step))
    a, b = fused(ids, weights), obvious(ids, weights)
    assert a.keys() == b.keys()
    torch.testing.assert_close(a, b)


def test_student_that_is_the_teacher_gets_no_gradient(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = llama(24, 3, seed=5), llama(24, 3, seed=5)
    terms = kd_step(student, teacher)(*batch())
    assert terms["loss"] == 0
    assert all((g == 0).all() for g in gradients(student, terms["loss"]).values())
    # Negative control: another student has both.
    assert kd_step(llama(24, 3, seed=6), teacher)(*batch())["loss"] > 0.01


def test_tied_head_gets_the_sum_of_both_gradients() -> None:
    """One tensor used twice against two tensors of the same values."""
    tied, apart = llama(24, 3, seed=3, tie_word_embeddings=True), llama(24, 3, seed=3)
    apart.load_state_dict(tied.state_dict())
    teacher, (ids, weights) = llama(32, 4, seed=4), batch()
    found, expected = (gradients(m, kd_step(m, teacher)(ids, weights)["loss"]) for m in (tied, apart))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    both = expected["model.embed_tokens.weight"] + expected["lm_head.weight"]
    torch.testing.assert_close(found["model.embed_tokens.weight"], both)
    assert not torch.allclose(both, expected["lm_head.weight"])


def test_several_teachers_and_a_share_each(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    other, (ids, weights) = llama(16, 2, seed=9), batch()
    terms = kd_step(student, [teacher, other], Objective(shares=(3.0, 1.0)))(ids, weights)
    mixed = 0.75 * teacher(ids).logits.softmax(-1) + 0.25 * other(ids).logits.softmax(-1)
    log_p = student(ids).logits.log_softmax(-1)
    kd = (F.kl_div(log_p, mixed, reduction="none").sum(-1) * weights).sum()
    torch.testing.assert_close(terms["kd"], kd.detach())
    with pytest.raises(MinitronError, match="3 shares for 2 teachers"):
        kd_step(student, [teacher, other], Objective(shares=(1.0, 1.0, 1.0)))


def test_padded_head_needs_the_shared_ids_named(pair: tuple[nn.Module, nn.Module]) -> None:
    student, (ids, weights) = pair[0], batch()
    padded = llama(32, 3, seed=7, vocab_size=VOCAB + 3)
    with pytest.raises(MinitronError, match=f"{VOCAB} and {VOCAB + 3} rows"):
        kd_step(student, padded)
    terms = kd_step(student, padded, Objective(vocab=VOCAB))(ids, weights)
    log_p, log_q = student(ids).logits.log_softmax(-1), padded(ids).logits[..., :VOCAB].log_softmax(-1)
    kd = (F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1) * weights).sum()
    torch.testing.assert_close(terms["kd"], kd.detach())


def test_recorded_teacher_stands_for_the_teacher(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    ids, weights = batch()
    with torch.no_grad():
        hidden = teacher.base_model(ids).last_hidden_state.flatten(0, 1)
    cache = record(hidden, head_of(teacher), VOCAB - 1)
    live, cached = kd_step(student, teacher)(ids, weights), kd_step(student)(ids, weights, recorded=cache)
    assert cached.keys() == live.keys()
    torch.testing.assert_close(cached["kd"], live["kd"])


def test_states_are_read_behind_the_norm_that_reads_them(pair: tuple[nn.Module, nn.Module]) -> None:
    """hidden and embedding from the models' own `output_hidden_states`, which the step never asks for."""
    step = kd_step(*pair, Objective(layer_map=((1, 2), (3, 4)), embedding=True, alpha=1.0))
    ids, weights = batch()
    terms = step(ids, weights)
    raw = [m.base_model(ids, output_hidden_states=True) for m in pair]

    def state(side: int, block: int) -> Tensor:
        model = pair[side].base_model
        if block == len(model.layers) - 1:
            return raw[side].last_hidden_state
        return model.layers[block + 1].input_layernorm(raw[side].hidden_states[block + 1])

    def term(student: int, teacher: int) -> Tensor:
        mapped = state(0, student) @ step.states.projection.weight.T
        return ((1 - F.cosine_similarity(mapped, state(1, teacher), dim=-1)) * weights).sum()

    torch.testing.assert_close(terms["hidden"], (term(1, 2) + term(3, 4)) / 2)
    torch.testing.assert_close(terms["embedding"], term(-1, -1))
    torch.testing.assert_close(terms["loss"], terms["kd"] + terms["hidden"] + terms["embedding"])


def test_projection_starts_as_the_selection_of_the_kept_channels() -> None:
    kept = np.array([1, 2, 5])
    layer = projection(3, 7, np.eye(7)[:, kept])
    assert layer is not None
    wide = torch.randn(7)
    expected = torch.zeros(7)
    expected[kept] = wide[kept]
    torch.testing.assert_close(layer(wide[kept]), expected)
    assert projection(7, 7) is None
    loose = projection(3, 7)
    torch.testing.assert_close(loose.weight.T @ loose.weight, torch.eye(3))


def test_alpha_follows_the_sums_of_the_step_before(pair: tuple[nn.Module, nn.Module]) -> None:
    step = kd_step(*pair, Objective(layer_map=((1, 2),), embedding=True))
    ids, weights = batch()
    first = step(ids, weights)
    torch.testing.assert_close(first["loss"], first["kd"])
    step.after_update(first)
    second = step(ids, weights)
    # The total is twice the logit loss, and alpha itself carries no gradient.
    torch.testing.assert_close(second["loss"], 2 * first["kd"])
    step.after_update({name: value.item() for name, value in second.items()})
    ratio = second["kd"] / (second["hidden"] + second["embedding"])
    torch.testing.assert_close(step.states.alpha, ratio.detach())


def test_checkpointed_activations_change_nothing(pair: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = pair
    step = kd_step(student, teacher, Objective(layer_map=((1, 2),), embedding=True, alpha=1.0)).train()
    ids, weights = batch()
    expected = gradients(step, step(ids, weights)["loss"])
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(step, step(ids, weights)["loss"])
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


@pytest.mark.slow
def test_compiled_blocks_change_nothing(pair: tuple[nn.Module, nn.Module]) -> None:
    """Blocks share their code, not their hooks: some states are read, others not."""
    student, teacher = llama(24, 6, seed=1), pair[1]
    step = kd_step(student, teacher, Objective(layer_map=((1, 1), (2, 2)), embedding=True, alpha=1.0))
    ids, weights = batch()
    expected = step(ids, weights)
    compile_blocks(student, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(step(ids, weights), expected)


def test_positions_that_start_again_keep_documents_apart(pair: tuple[nn.Module, nn.Module]) -> None:
    step = kd_step(*pair, Objective(layer_map=((1, 2),), alpha=1.0))
    ids, weights = batch(rows=1, length=12)
    weights[0, 4] = 0
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    joined = step(ids, weights, position_ids=positions)
    parts = [step(ids[:, part], weights[:, part]) for part in (slice(0, 5), slice(5, 12))]
    for name, value in joined.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
    assert not torch.allclose(step(ids, weights)["kd"], joined["kd"])


def test_objective_by_depth() -> None:
    assert auto_terms(32, 32) == auto_terms(25, 32) == "logits"
    assert auto_terms(24, 32) == auto_terms(16, 32) == "logits+hidden+embedding"
    assert build_objective("auto", 16, 32).pairs == ((-1, -1), (13, 29))
    assert resolve_layer_map(["1:2", "-1:-1"], 4, 8) == ((1, 2), (3, 7))
    assert resolve_layer_map(["kept"], 3, 8, [0, 1, 7]) == ((0, 0), (1, 1), (2, 7))


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (lambda: resolve_layer_map(["1:2", "4:1", "x"], 4, 8), "4:1, x"),
        (lambda: resolve_layer_map(["kept"], 3, 8), "3 blocks, the teacher 8"),
        (lambda: build_objective("logit", 3, 8), "'logit'"),
        (lambda: build_objective("logits", 3, 8, layer_map=["1:2"]), "compares no layers"),
        (lambda: Objective(metric="cos", ce_weight=-1.0), "'cos'.*ce weight is -1.0"),
    ],
)
def test_nonsense_is_refused_with_every_offender(bad: Callable[[], object], names: str) -> None:
    with pytest.raises(MinitronError, match=names):
        bad()


class Multiplier(Term):
    """A toy of what learned masks need: lambda * (mean of the states - 1), ascended in lambda."""

    name = "multiplier"
    requests = Requests(student=(1,))

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(0.5)), []  # type: ignore[var-annotated]

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup([self.weight], rate=10.0, maximize=True, clip=1e-3)]

    def loss(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        gap = (context.student.states[1].mean(-1) * context.weights).sum() - 1
        return self.weight * gap, {"gap": gap.detach()}

    def after_update(self, values: Mapping[str, Tensor | float]) -> None:
        self.seen.append(values["gap"])


def test_a_new_term_fits_in_without_the_step_or_the_loop_knowing_it(pair: tuple[nn.Module, nn.Module]) -> None:
    student, (ids, weights) = pair[0], batch()
    term = Multiplier()
    step = KDStep(student, [], [Logits(Objective()), term])
    adam = optimizer.build(step, step.param_groups(), (0.0, 0.0), 1e-8, 0.1)
    before = {name: p.detach().clone() for name, p in step.named_parameters()}
    found = step(ids, weights)
    torch.testing.assert_close(found["loss"], found["ce"] + 0.5 * found["gap"])
    found["loss"].backward()
    norm = optimizer.clip(adam, 1e9)
    expected = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(norm, expected)
    assert abs(term.weight.grad) == pytest.approx(1e-3, rel=1e-3)
    optimizer.set_rate(adam, 1e-3)
    adam.step()
    step.after_update(found)
    # AdamW without memory moves by its rate: ten times the student's, up the gradient (the gap's sign).
    climbed = float(term.weight.detach() - before["multiplier.weight"])
    assert climbed == pytest.approx(1e-2 * float(found["gap"].sign()), rel=1e-3)
    moved = (student.model.norm.weight - before["student.model.norm.weight"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-2, atol=1e-5)
    assert term.seen == [found["gap"]]
