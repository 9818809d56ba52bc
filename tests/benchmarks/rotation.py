"""How much more there is to win on the hidden axis: keep directions of the residual stream, not channels.

    python -m tests.benchmarks.rotation [--seeds 1] [--steps 200] [--targets h48-f128,h48-f96] [--cache FILE]

An experiment on the real checkpoint beside `tests.benchmarks.compensation`, whose figures it is to be read with (give
both the same --cache). Normalised to x^ = x / rms(x), the inputs of all blocks and of the head have one shared basis Q:
the leading eigenvectors of the mean of their second moments. With the norms' weights moved into what reads them, the
student lives in that basis (embedding E Q, writers Q^T W, norm weights 1) and its readers take the least-squares map
from z = Q^T x^ to W diag(w) x^. Shapes, config and a tied head stay: the final norm's weight is then the one that fits
the head best. RMS norms in front of both halves of a block are presupposed, which holds for this checkpoint; a rotation
has no kept indices, so nothing of this is in `prune`. SliceGPT (arXiv 2401.15024) rotates too, with a basis per block
and matrices on the residual path that no Hugging Face architecture has.
"""

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minitron_cli.checkpoint.moments_file import Input, Moments, moments_path, open_moments
from minitron_cli.training.load import load_teacher
from tests.benchmarks.compensation import TARGETS, TEACHER, Curve, cached, distill, measure, show, student

RIDGE = 1e-4  # relative, as in `prune`
# Norm -> the matrices that read it, inside a block; and those that write to the stream.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def rotate(model: torch.nn.Module, moments: Moments, hidden: int) -> torch.nn.Module:
    """A model whose residual stream holds the `hidden` leading directions of that of `model`, which has all channels.

    Its neurons may be fewer than those of the model that the moments are of: the stream's statistics are the source's.
    """
    source = {
        name: tensor.double().numpy() for name, tensor in load_teacher(TEACHER, torch.float32).state_dict().items()
    }
    old = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}
    normal: dict[str, np.ndarray] = {}  # norm -> E[x^ x^T] behind it
    for one in moments.inputs:
        if one.axis == "hidden":
            norm = norm_before(one)
            normal[norm] = moments.mean(one) / np.outer(source[norm], source[norm])
    values, vectors = np.linalg.eigh(sum(m / np.trace(m) for m in normal.values()))
    basis = vectors[:, np.argsort(-values)[:hidden]]
    new = {"model.embed_tokens.weight": old["model.embed_tokens.weight"] @ basis}
    for norm, moment in normal.items():
        layer, _, kind = norm.removesuffix(".weight").rpartition(".")
        new[norm] = np.ones(hidden)
        for name in (f"{layer}.{reader}.weight" for reader in READERS.get(kind, ())):
            new[name] = (old[name] * old[norm]) @ foretell(moment, basis)
    for name in old:
        if name.removesuffix(".weight").endswith(WRITERS):
            new[name] = basis.T @ old[name]
    # One matrix is both embedding and head: the final norm's weight is the one that fits the head best.
    final = "model.norm.weight"
    head = (old["model.embed_tokens.weight"] * old[final]) @ foretell(normal[final], basis)
    tied = new["model.embed_tokens.weight"]
    new[final] = (tied * head).sum(0) / np.square(tied).sum(0)
    return filled(model, new, hidden)


def norm_before(one: Input) -> str:
    """The norm whose output an input is."""
    if one.layer is None:
        return "model.norm.weight"
    kind = next(norm for norm, readers in READERS.items() if one.readers[0].removesuffix(".weight").endswith(readers))
    return f"model.layers.{one.layer}.{kind}.weight"


def foretell(moment: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The least-squares map from z = Q^T x to x: moment (n, n), basis Q (n, k) -> (n, k)."""
    inner = basis.T @ moment @ basis
    return np.linalg.solve(inner + RIDGE * np.diag(np.diagonal(inner)), basis.T @ moment).T


def filled(model: torch.nn.Module, weights: dict[str, np.ndarray], hidden: int) -> torch.nn.Module:
    """A model of the same kind with `hidden` channels and these weights, of which none may be missing."""
    config = copy.deepcopy(model.config)
    config.hidden_size = hidden  # type: ignore[union-attr]
    narrow = type(model)(config).float()
    state = {name: torch.tensor(np.ascontiguousarray(value), dtype=torch.float32) for name, value in weights.items()}
    parameters = dict(narrow.named_parameters())
    assert parameters.keys() == state.keys(), parameters.keys() ^ state.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    return narrow.train()


def rotated(scores: Path, sizes: dict[str, int], select: str, directory: Path) -> torch.nn.Module:
    """Cut the neurons as `prune --compensate` does, then the hidden axis by directions."""
    wide = student(scores, {axis: n for axis, n in sizes.items() if axis != "hidden"}, "1e-2", select, directory)
    return rotate(wide, open_moments(moments_path(scores)), sizes["hidden"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--targets", default="h48-f128,h48-f96")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if not (TEACHER / "config.json").is_file():
        raise SystemExit(f"skipped: there is no real checkpoint at {TEACHER}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = args.cache or directory / "runs.json"
        scores = [measure(directory, seed) for seed in range(args.seeds)]
        for target in args.targets.split(","):
            curves: dict[str, list[Curve]] = {}
            for arm in ("plain", "rotated"):
                for seed, found in enumerate(scores):
                    make = partial(run, arm, found, TARGETS[target], directory / "student", args.steps, seed)
                    key = f"{target} {arm} seed {seed} steps {args.steps}"
                    curves.setdefault(arm, []).append(cached(file, key, make))
            show(target, curves, args.steps)


def run(arm: str, scores: Path, sizes: dict[str, int], directory: Path, steps: int, seed: int) -> Curve:
    """One training run of one of the two."""
    model = rotated(scores, sizes, "residual", directory) if arm == "rotated" else student(
        scores, sizes, None, "scores", directory
    )  # fmt: skip
    return distill(model, steps, seed)


if __name__ == "__main__":
    main()
