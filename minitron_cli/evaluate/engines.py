"""What runs a cell of the bench: transformers (`hf`), or vLLM where it is installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.errors import MinitronError
from minitron_cli.evaluate.bench import Cell, Sample, Subject
from minitron_cli.evaluate.model import LoadedModel, load_model, max_context
from minitron_cli.hf.devices import choose_device, choose_dtype, clock, dtype_name
from minitron_cli.hf.load import config_of, new_model
from minitron_cli.hf.parts import vocabulary_of, weight_bytes

ENGINES = ("hf", "vllm")


def check_engine(engine: str) -> None:
    """Refuse an engine that is unknown or not installed."""
    if engine not in ENGINES:
        raise MinitronError(f"no engine {engine!r}", f"known: {', '.join(ENGINES)}")
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise MinitronError("engine vllm is not installed", "pip install vllm, or leave --engine out")


def make_subjects(
    engine: str,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool = False,
) -> list[Subject]:
    """Every model in memory at once, for they take turns."""
    check_engine(engine)
    if engine == "vllm":
        device = "cpu"  # only its sizes are read here; vLLM loads the weights itself
    loaded = [
        load_model(path, device=device, dtype=dtype, name=name, trust_remote_code=trust_remote_code)
        for path, name in zip(paths, names)
    ]
    if engine == "hf":
        return [_subject(model, lambda cell, model=model: run_hf(model, cell)) for model in loaded]
    return [_subject(model, _vllm_runner(model, len(loaded))) for model in loaded]


def _subject(loaded: LoadedModel, run: Any) -> Subject:
    size = weight_bytes(loaded.model)
    return Subject(loaded.name, str(loaded.path), loaded.num_parameters, size, max_context(loaded), run)


def subject_of_config(config: Mapping[str, Any], name: str, *, device: str, dtype: str) -> Subject:
    """A model of this config.json dictionary with random weights: as fast as any of its shape, and nothing is read."""
    where = choose_device(device)
    resolved = choose_dtype(dtype, where)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        model = new_model(config_of(config), resolved, where)
    loaded = LoadedModel(name, Path(name), model, None, where, dtype_name(resolved))
    return _subject(loaded, lambda cell: run_hf(loaded, cell))


@torch.inference_mode()
def run_hf(loaded: LoadedModel, cell: Cell) -> Sample:
    """Greedy decoding with the KV cache, an exact number of tokens: an end-of-text token does not stop it."""
    model: Any = loaded.model
    ids = prompt(vocabulary_of(model), cell).to(loaded.device)
    before = _start_memory(loaded.device)
    start = clock(loaded.device)
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    first = clock(loaded.device)
    for _ in range(cell.output - 1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
    end = clock(loaded.device)
    peak = None
    if before is not None:
        # `before` are the weights of all models that are in memory; this one's own count.
        peak = weight_bytes(model) + torch.cuda.max_memory_allocated(loaded.device) - before
    return Sample(first - start, end - first, kv_bytes(out.past_key_values), peak)


def prompt(vocab_size: int, cell: Cell) -> Tensor:
    """Random ids (batch, input), the same for every model of one vocabulary."""
    generator = torch.Generator().manual_seed(cell.input * 1009 + cell.batch)
    return torch.randint(vocab_size, (cell.batch, cell.input), generator=generator)


def kv_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, and of the states of recurrent layers and convolutions."""
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    for layer in cache.layers:
        held += [state for name in ("conv_states", "recurrent_states") for state in getattr(layer, name, {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)


def _start_memory(device: torch.device) -> int | None:
    """Bytes allocated before a run, with the peak counter reset; None where the device does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _vllm_runner(loaded: LoadedModel, num_models: int) -> Any:
    """Time to one token, and to all of them; their difference is the decoding."""
    from vllm import LLM, SamplingParams, TokensPrompt

    share = 0.9 / num_models
    llm = LLM(model=str(loaded.path), dtype=loaded.dtype, gpu_memory_utilization=share, enable_prefix_caching=False)
    vocab = vocabulary_of(loaded.model)

    def timed(prompts: list[Any], tokens: int) -> float:
        start = time.perf_counter()
        settings = SamplingParams(temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        llm.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - start

    def run(cell: Cell) -> Sample:
        prompts = [TokensPrompt(prompt_token_ids=row) for row in prompt(vocab, cell).tolist()]
        first = timed(prompts, 1)
        return Sample(first, timed(prompts, cell.output) - first, None, None)

    return run
