"""Peak memory and time of the distillation loss, forward and backward, against what one would use instead.

    python -m tests.benchmarks.loss [--tokens 4096] [--vocab 32000] [--hidden 256] [--device cuda] [--dtype bfloat16]

Rows: the four head GEMMs and nothing else (the floor), the fused loss, the same loss in plain PyTorch, and, where they
can be imported, TRL's generalized_jsd_loss, ModelOpt's LogitsDistillationLoss and Liger's LigerFusedLinearJSDLoss, the
one in chunks of PyTorch (in an environment of their own: pip install torch trl nvidia-modelopt requests, and
liger-kernel from 0.8.5 on, where beta 0 is the forward KL). Memory is measured in a process per row, over the inputs;
times are taken in turns in one process. On a busy machine: OMP_NUM_THREADS=1 and --cpu-time.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minitron_cli.training.fused import chunk_size
from minitron_cli.training.head import Head
from minitron_cli.training.losses import Teacher, fused_distillation
from tests.benchmarks.measure import paired_ratio, paired_seconds, parse, peak_bytes

OURS = "minitron fused"


class Inputs(NamedTuple):
    """Last hidden states (N, H) and heads (V, H) of both models."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor


def make_inputs(args: argparse.Namespace) -> Inputs:
    """Random states and heads with logits of ordinary size, the student's asking for gradients."""
    torch.manual_seed(0)

    def rand(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=args.device) * scale).to(getattr(torch, args.dtype))

    wide = args.teacher_hidden or args.hidden
    student = rand(args.tokens, args.hidden), rand(args.vocab, args.hidden, scale=2 * args.hidden**-0.5)
    return Inputs(
        *(t.requires_grad_() for t in student), rand(args.tokens, wide), rand(args.vocab, wide, scale=2 * wide**-0.5)
    )


# Each takes the inputs and runs forward and backward; imports inside, so that a missing peer is a missing row.


def gemms(x: Inputs) -> None:
    """The four head GEMMs over chunks: teacher logits, student logits, dH, dW."""
    size = chunk_size(len(x.hidden), len(x.head), x.hidden.device.type, None)
    out = torch.empty(2, size, len(x.head), dtype=x.head.dtype, device=x.head.device)
    total = torch.zeros_like(x.head)
    with torch.no_grad():
        for start in range(0, len(x.hidden), size):
            states, taught = x.hidden[start : start + size], x.teacher_hidden[start : start + size]
            student, teacher = out[0, : len(states)], out[1, : len(states)]
            torch.mm(taught, x.teacher_head.t(), out=teacher)
            torch.mm(states, x.head.t(), out=student)
            torch.mm(student, x.head)
            total.addmm_(student.t(), states)


def fused(x: Inputs) -> None:
    """This package."""
    weights = torch.full((len(x.hidden),), 1 / len(x.hidden), device=x.hidden.device)
    teacher = Teacher(x.teacher_hidden, Head(x.teacher_head))
    fused_distillation(x.hidden, Head(x.head), [teacher], weights).loss.backward()


def _with_logits(loss: Callable[[Tensor, Tensor], Tensor], x: Inputs) -> None:
    with torch.no_grad():
        teacher = x.teacher_hidden @ x.teacher_head.t()
    loss(x.hidden @ x.head.t(), teacher).backward()


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """F.kl_div on log-softmaxes."""
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def trl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """TRL's loss of GKD at beta 0, which is forward KL."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=0.0)


def modelopt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ModelOpt's logits loss."""
    from modelopt.torch.distill import LogitsDistillationLoss

    return LogitsDistillationLoss(reduction="batchmean")(student, teacher)


def liger_loss(x: Inputs) -> None:
    """Liger's loss over chunks of 1,024 tokens, compiled on a GPU; no hard labels."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    on_gpu = x.hidden.device.type == "cuda"
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=on_gpu)
    labels = torch.zeros(len(x.hidden), dtype=torch.long, device=x.hidden.device)
    loss(x.hidden, x.head, x.teacher_hidden, x.teacher_head, labels).backward()


ROWS: dict[str, Callable[[Inputs], None]] = {
    "four head GEMMs": gemms,
    OURS: fused,
    "naive PyTorch": partial(_with_logits, naive),
    "TRL": partial(_with_logits, trl_loss),
    "ModelOpt": partial(_with_logits, modelopt_loss),
    "Liger": liger_loss,
}


def once(row: Callable[[Inputs], None], inputs: Inputs) -> None:
    """One forward and backward, gradients let go as an optimizer would after use."""
    row(inputs)
    inputs.hidden.grad = inputs.head.grad = None


def importable(name: str) -> bool:
    """Whether a row can run here, tried on two tokens."""
    small = argparse.Namespace(tokens=2, vocab=8, hidden=4, teacher_hidden=4, device="cpu", dtype="float32")
    try:
        once(ROWS[name], make_inputs(small))
    except ImportError:
        return False
    return True


def memory_of(name: str, argv: list[str]) -> int:
    """Peak bytes of one row in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.loss", *argv, "--memory-of", name]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--teacher-hidden", type=int)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, not of the clock")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parse(parser, tokens=64, vocab=512, hidden=32, rounds=1)
    warnings.simplefilter("ignore")
    if args.memory_of:
        importable(args.memory_of)  # imports before the count begins
        inputs = make_inputs(args)
        print(json.dumps(peak_bytes(partial(once, ROWS[args.memory_of], inputs), args.device)))
        return
    names = [name for name in ROWS if importable(name)]
    memory = {name: memory_of(name, sys.argv[1:]) for name in names}
    inputs = make_inputs(args)
    runs = {name: partial(once, ROWS[name], inputs) for name in names}
    seconds = paired_seconds(runs, args.rounds, args.device, args.cpu_time)
    shape = f"N={args.tokens} V={args.vocab} H={args.hidden}/{args.teacher_hidden or args.hidden}"
    print(f"{shape} {args.dtype} {args.device}, {torch.get_num_threads()} threads")
    print(f"{'':18}{'peak MB':>10}{'x ours':>9}{'seconds':>10}{'x ours':>9}")
    for name in names:
        ratios = memory[name] / memory[OURS], paired_ratio(seconds[name], seconds[OURS])
        print(f"{name:18}{memory[name] / 1e6:10.0f}{ratios[0]:9.2f}{median(seconds[name]):10.3f}{ratios[1]:9.2f}")
    if missing := [name for name in ROWS if name not in names]:
        print(f"not importable here: {', '.join(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
