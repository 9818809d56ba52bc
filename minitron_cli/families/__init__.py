"""One small file per model family; `FAMILIES` is the whole list, in plain sight."""

from minitron_cli.errors import MinitronError, near_matches
from minitron_cli.families.apertus import APERTUS
from minitron_cli.families.bamba import BAMBA, FALCON_H1
from minitron_cli.families.cohere import COHERE, COHERE2
from minitron_cli.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE
from minitron_cli.families.ernie4_5_moe import ERNIE4_5_MOE
from minitron_cli.families.exaone import EXAONE4
from minitron_cli.families.gemma import GEMMA, GEMMA2, GEMMA3
from minitron_cli.families.gemma4 import GEMMA4
from minitron_cli.families.glm import GLM, GLM4
from minitron_cli.families.glm4_moe import DOTS1, GLM4_MOE, SOLAR_OPEN
from minitron_cli.families.gpt_neox import GPT_NEOX
from minitron_cli.families.gpt_oss import GPT_OSS
from minitron_cli.families.granitemoe import GRANITEMOE
from minitron_cli.families.granitemoehybrid import GRANITEMOEHYBRID
from minitron_cli.families.helium import HELIUM
from minitron_cli.families.hunyuan import HUNYUAN_DENSE
from minitron_cli.families.hyperclovax import HYPERCLOVAX
from minitron_cli.families.lfm2 import LFM2
from minitron_cli.families.llama import ERNIE4_5, LLAMA, SEED_OSS, SMOLLM3
from minitron_cli.families.mixtral import MIXTRAL
from minitron_cli.families.nemotron import ARCEE, JAIS2, NEMOTRON
from minitron_cli.families.nemotron_h import NEMOTRON_H
from minitron_cli.families.olmo import OLMO2, OLMOE
from minitron_cli.families.phi3 import PHI3
from minitron_cli.families.qwen import MELLUM, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from minitron_cli.families.qwen_linear import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from minitron_cli.families.stablelm import STABLELM
from minitron_cli.families.starcoder2 import STARCODER2
from minitron_cli.families.wrappers import WRAPPERS
from minitron_cli.spec.family import Family
from minitron_cli.spec.wrapper import Wrapper

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    SMOLLM3,
    SEED_OSS,
    ERNIE4_5,
    HUNYUAN_DENSE,
    HYPERCLOVAX,
    HELIUM,
    QWEN2,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    MELLUM,
    MIXTRAL,
    NEMOTRON,
    JAIS2,
    ARCEE,
    PHI3,
    GLM,
    GLM4,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    OLMO2,
    OLMOE,
    EXAONE4,
    COHERE,
    COHERE2,
    STABLELM,
    STARCODER2,
    GPT_NEOX,
    GPT_OSS,
    APERTUS,
    GRANITEMOE,
    GRANITEMOEHYBRID,
    BAMBA,
    FALCON_H1,
    NEMOTRON_H,
    LFM2,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_NEXT,
    GLM4_MOE,
    DOTS1,
    SOLAR_OPEN,
    ERNIE4_5_MOE,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE_LITE,
)

# Known model types that a table cannot describe, and why.
UNSUPPORTED: dict[str, str] = {
    "llama4_text": "experts and shared expert take their width from one config key, and dense layers may interleave",
    "llama4": "its text model cannot: experts and shared expert take their width from one config key",
    "gemma3n_text": "its layers share key/value caches and carry per-layer embeddings",
    "mamba": "it has no attention and no MLP to prune",
    "mamba2": "it has no attention and no MLP to prune",
}


def known_model_types() -> tuple[str, ...]:
    """Every model_type that some family's table describes, sorted."""
    return tuple(sorted(t for f in FAMILIES for t in f.model_types))


def wrapper_of(model_type: str) -> Wrapper | None:
    """What stands around the text model of models of text and images; None where it is no such model."""
    return next((wrapper for wrapper in WRAPPERS if wrapper.model_type == model_type), None)


def known_family(model_type: object) -> Family | None:
    """The family of a config's model_type, None where no table describes it."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_of(model_type: str) -> Family:
    """The family of a config's model_type, or a MinitronError that says which are known."""
    if (family := known_family(model_type)) is not None:
        return family
    supported = ", ".join((*known_model_types(), *(f"{wrapper.model_type} (its text model)" for wrapper in WRAPPERS)))
    if model_type in UNSUPPORTED:
        raise MinitronError(
            f"{model_type} models cannot be pruned: {UNSUPPORTED[model_type]}",
            f"supported: {supported}",
        )
    raise MinitronError(
        f"unknown model_type {model_type!r} ({near_matches(model_type, known_model_types())})",
        f"supported: {supported}; a new family is one table in minitron_cli/families",
    )
