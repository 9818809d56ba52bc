"""What mixtures of experts share: one tensor per expert on disk, all experts of a layer fused in memory."""

from minitron_cli.families.llama import GATED_MLP
from minitron_cli.spec.axes import CONFIG_KEYS, parse_table

EXPERT_KEYS = {
    **{axis: key for axis, key in CONFIG_KEYS.items() if axis != "ffn"},
    "expert": "num_experts|num_local_experts",
    "expert_active": "num_experts_per_tok",
}

# transformers 5 fuses experts when it loads them and splits them again when it saves; either may be on disk.
EXPERTS = """
    model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight  expert_ffn hidden                         @split
    model.layers.{layer}.mlp.experts.{expert}.up_proj.weight    expert_ffn hidden                         @split
    model.layers.{layer}.mlp.experts.{expert}.down_proj.weight  hidden expert_ffn                         @split
    model.layers.{layer}.mlp.experts.gate_up_proj               expert (expert_ffn + expert_ffn) hidden   @fused
    model.layers.{layer}.mlp.experts.down_proj                  expert hidden expert_ffn                  @fused
"""
ROUTER = """
    model.layers.{layer}.mlp.gate.weight                        expert hidden
"""

# The lines of a dense MLP that an expert's rows are (see Dense).
GATE, UP, DOWN = ((weight.name,) for weight in parse_table(GATED_MLP))
TO_MLP = {
    "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight": GATE,
    "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": UP,
    "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": DOWN,
    "model.layers.{layer}.mlp.experts.gate_up_proj": (*GATE, *UP),
    "model.layers.{layer}.mlp.experts.down_proj": DOWN,
}
