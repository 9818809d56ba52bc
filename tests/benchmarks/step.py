"""The whole distillation step, forward and backward, against its bare limit.

    python -m tests.benchmarks.step [--tokens 2048] [--device cuda --dtype bfloat16 --shapes llama-8b-4b]

The bare limit is what no step can do without: the teacher's backbone forward, the student's backbone forward and
backward, and the four head GEMMs, on the same batch with the same kernels; no loss, no optimizer. The column shows
t_bare / t_step, 1 is the limit, for the fused loss, the naive one, and the fused one with intermediate and embedding
losses. On a busy machine: OMP_NUM_THREADS=1 and --cpu-time.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from minitron_cli.training.chunks import chunk_size
from minitron_cli.training.objectives import LOGITS_ONLY, build_objective
from minitron_cli.training.step import KDStep, kd_step
from tests.benchmarks.measure import paired_ratio, paired_seconds, parse
from tests.training.naive import naive_step

# (hidden, ffn, blocks, heads, kv heads, vocab) of teacher and student.
SHAPES = {
    "tiny": ((128, 256, 2, 2, 1, 512), (64, 128, 2, 2, 1, 512)),
    "small": ((512, 1536, 8, 8, 4, 32000), (384, 1152, 8, 8, 4, 32000)),
    "medium": ((768, 2304, 12, 12, 4, 32000), (576, 1536, 12, 12, 4, 32000)),
    "llama-3b-1b": ((3072, 8192, 28, 24, 8, 128256), (2048, 8192, 16, 16, 8, 128256)),
    "llama-8b-4b": ((4096, 14336, 32, 32, 8, 128256), (3072, 9216, 32, 32, 8, 128256)),
}


def build(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A random Llama; head_dim is the teacher's, 64 or 128."""
    hidden, ffn, blocks, heads, kv, vocab = shape
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=128 if hidden > 1024 else 64,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def bare(student: nn.Module, teacher: nn.Module, ids: Tensor) -> Callable[[], None]:
    """The limit: the same backbones, GEMMs of the same shapes and chunks, nothing in between, nothing allocated."""
    heads = student.lm_head.weight.detach(), teacher.lm_head.weight.detach()
    size = chunk_size(ids.numel(), len(heads[0]), ids.device.type, None)
    buffers = [torch.empty(size, len(head), dtype=head.dtype, device=head.device) for head in heads]
    total = torch.zeros_like(heads[0])

    @torch.no_grad()
    def head_gemms(states: Tensor, taught: Tensor) -> Tensor:
        """Teacher logits, student logits, dH, dW: states (N, H) -> dH (N, H)."""
        back = torch.empty_like(states)
        for start in range(0, len(states), size):
            rows = slice(start, min(start + size, len(states)))
            z_s, z_t = (buffer[: rows.stop - start] for buffer in buffers)
            torch.mm(taught[rows], heads[1].t(), out=z_t)
            torch.mm(states[rows], heads[0].t(), out=z_s)
            torch.mm(z_s, heads[0], out=back[rows])
            total.addmm_(z_s.t(), states[rows])
        return back

    def run() -> None:
        with torch.no_grad():
            taught = teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        states = student.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states.backward(head_gemms(states.detach().flatten(0, 1), taught).view_as(states))
        student.zero_grad()

    return run


def whole(step: KDStep, ids: Tensor) -> Callable[[], None]:
    """The step as the loop runs it."""
    weights = torch.full(ids.shape, 1 / (ids.numel() - len(ids)), device=ids.device)
    weights[:, -1] = 0

    def run() -> None:
        step(ids, weights)["loss"].backward()
        step.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of this process, not of the clock")
    parser.add_argument("--only", nargs="*", help="rows to run besides the bare limit")
    args = parse(parser, shapes="tiny", tokens=64, seq_len=16, rounds=1)
    teacher, student = (build(shape, args.device, getattr(torch, args.dtype)) for shape in SHAPES[args.shapes])
    ids = torch.randint(0, SHAPES[args.shapes][0][-1], (args.tokens // args.seq_len, args.seq_len), device=args.device)
    blocks = len(student.model.layers)
    objectives = {
        "fused": (kd_step, LOGITS_ONLY),
        "fused, all losses": (kd_step, build_objective("logits+hidden+embedding", blocks, len(teacher.model.layers))),
        "naive": (naive_step, LOGITS_ONLY),
    }
    chosen = {name: make for name, make in objectives.items() if args.only is None or name in args.only}
    runs = {"bare limit": bare(student, teacher, ids)}
    runs |= {name: whole(make(student, teacher, objective), ids) for name, (make, objective) in chosen.items()}
    seconds = paired_seconds(runs, args.rounds, args.device, args.cpu_time)
    sizes = " -> ".join(f"{sum(p.numel() for p in m.parameters()) / 1e6:.0f}M" for m in (teacher, student))
    print(f"{sizes}, {args.tokens} tokens, {args.dtype} {args.device}, {torch.get_num_threads()} threads")
    print(f"{'':20}{'seconds':>10}{'tokens/s':>10}{'t_bare / t_step':>18}")
    for name, times in seconds.items():
        ratio = paired_ratio(seconds["bare limit"], times)
        print(f"{name:20}{median(times):10.3f}{args.tokens / median(times):10.0f}{ratio:18.3f}")


if __name__ == "__main__":
    main()
