"""Pruned models in llama.cpp: converted by its own converter, they compute what transformers does, or are warned of.

The log-probabilities of llama.cpp, of a GGUF file in float32, are those of transformers exactly where `inspect
--servable` has nothing to say of llama.cpp; where it has, the file does not load or computes another model. Sliding
windows of Mistral 7B's first version and of Qwen (`use_sliding_window`) are unknown to llama.cpp, cut or not: the toys
here have none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.servable import servable_model
from minitron_cli.prune.execute import prune
from minitron_cli.prune.request import request_from_options
from tests import llama_cpp
from tests.prune.cutting import load
from tests.prune.test_pattern import scored
from tests.spellers import byte_level, made_text
from tests.toys import toy_ids, toy_model

pytestmark = pytest.mark.skipif(bool(llama_cpp.absent()), reason=llama_cpp.absent())

_SLIDING = {
    "num_hidden_layers": 14,
    "layer_types": ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(14)],
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
}
_NOPE = {"num_hidden_layers": 8, "no_rope_layers": [1, 1, 1, 0] * 2}
_FULL = {"layer_types": ["full_attention"] * 3, "use_sliding_window": False}
_WIDTH = {"hidden": 36, "ffn": 56, "heads": 4}

# name: model type, what its toy has otherwise, how it is cut, whether llama.cpp takes it for what it is
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "llama": ("llama", {}, {**_WIDTH, "layers": 2}, True),
    "mistral": ("mistral", {"sliding_window": None}, _WIDTH, True),
    "qwen3": ("qwen3", _FULL, {**_WIDTH, "kv-heads": 1, "heads": 3}, True),
    "qwen3-moe": ("qwen3_moe", {"norm_topk_prob": True}, {"hidden": 36, "experts": 3, "expert-ffn": 16}, True),
    "granite": ("granite", {"head_dim": 8}, {"ffn": 56, "layers": 2}, True),
    "granite-narrow": ("granite", {"head_dim": 8}, _WIDTH, False),
    "qwen2": ("qwen2", {"head_dim": 8}, {"ffn": 56}, True),
    "qwen2-narrow": ("qwen2", {"head_dim": 8}, {"hidden": 36}, False),
    "gemma3-whole-period": ("gemma3_text", _SLIDING, {"drop-layers": "3-8", "hidden": 36}, True),
    "gemma3-five-layers": ("gemma3_text", _SLIDING, {"drop-layers": "6-10"}, False),
    "gemma3-pattern-kept": ("gemma3_text", _SLIDING, {"layers": 8, "keep-pattern": True}, True),
    "smollm3-whole-period": ("smollm3", _NOPE, {"drop-layers": "2-5", "ffn": 56}, True),
    "smollm3-one-layer": ("smollm3", _NOPE, {"drop-layers": "1"}, False),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """converted("llama") -> the directory of the pruned model, its GGUF file beside it."""
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("gguf")
    backend = byte_level(made_text(50), llama_cpp.VOCAB)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    for name, (model_type, other, options, _) in CASES.items():
        source = place / f"{name}-source"
        toy_model(model_type, vocab_size=llama_cpp.VOCAB, **other).save_pretrained(source)
        tokenizer.save_pretrained(source)
        given = {**options, "scores": scored(source, source), "output": place / name}
        prune(request_from_options(str(source), given), lambda wanted: pytest.fail("nothing was to be measured"))
    failed = llama_cpp.convert([(place / name, place / f"{name}.gguf") for name in CASES])
    assert failed == [""] * len(CASES)
    return lambda name: place / name


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_pruned_model_or_is_warned_of(name: str, converted: Callable[[str], Path]) -> None:
    directory, right = converted(name), CASES[name][-1]
    assert bool(servable_model(open_checkpoint(directory))["engines"]["llama.cpp"]) is not right
    ids = toy_ids(1, 12, llama_cpp.VOCAB)
    found = llama_cpp.log_probabilities(directory.with_name(f"{name}.gguf"), ids[0].tolist())
    with torch.inference_mode():
        wanted = load(directory)(ids).logits[0, -1].log_softmax(-1)
    apart = float("inf") if found is None else float((torch.tensor(found) - wanted).abs().max())
    # llama.cpp looks Gemma's activation up in a table of float16.
    assert apart < (5e-3 if "gemma" in name else 1e-4) if right else apart > 2e-2
