"""gpt-oss: experts fused and transposed (x @ W), gate and up interleaved column by column."""

from minitron_cli.families.experts import EXPERT_KEYS
from minitron_cli.families.llama import ATTENTION, MODEL, NORMS, O_BIAS, QKV_BIAS
from minitron_cli.spec.assumptions import one_in
from minitron_cli.spec.family import family

GPT_OSS = family(
    "gpt_oss",
    ["gpt_oss"],
    MODEL
    + NORMS
    + ATTENTION
    + QKV_BIAS
    + O_BIAS
    + """
    model.layers.{layer}.self_attn.sinks                 head
    model.layers.{layer}.mlp.router.weight               expert hidden
    model.layers.{layer}.mlp.router.bias                 expert
    # columns are [g0 u0 g1 u1 ...]
    model.layers.{layer}.mlp.experts.gate_up_proj        expert hidden (expert_ffn 2)
    model.layers.{layer}.mlp.experts.gate_up_proj_bias   expert (expert_ffn 2)
    model.layers.{layer}.mlp.experts.down_proj           expert expert_ffn hidden
    model.layers.{layer}.mlp.experts.down_proj_bias      expert hidden
    """,
    config_keys={**EXPERT_KEYS, "expert": "num_local_experts", "expert_ffn": "intermediate_size"},
    defaults={"attention_bias": True},
    unrotated="its experts are stored transposed, which rotation does not support yet",
    engines=(one_in(2, "full_attention", "llama.cpp"),),
)
