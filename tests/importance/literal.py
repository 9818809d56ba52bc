"""The formulas again, slowly and literally: one sample, one token, one channel at a time, in float64, on plain lists of
activations that hooks written for the model class (not derived from the tables) have caught."""

import numpy as np
import torch

# Where a family's class keeps what the others call otherwise: (attention, its input reader, its output), (MLP's).
ATTENTION = {
    "gpt_neox": ("attention", "query_key_value", "dense"),
    "phi3": ("self_attn", "qkv_proj", "o_proj"),
    "lfm2": ("self_attn", "q_proj", "out_proj"),
    **dict.fromkeys(("deepseek_v3", "glm4_moe_lite"), ("self_attn", "q_a_proj", "o_proj")),
    "nemotron_h": ("mixer", "q_proj", "o_proj"),
}
MLP = {
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
    **dict.fromkeys(("phi3", "glm", "glm4"), ("gate_up_proj", "down_proj")),
    "starcoder2": ("c_fc", "c_proj"),
    "lfm2": ("w1", "w2"),
    "granitemoehybrid": ("input_linear", "output_linear"),
}
# What stands beside attention, or in its place: (its module, its input reader, its output).
LINEAR = dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), ("linear_attn", "in_proj_qkv", "out_proj"))
LINEAR["qwen3_next"] = ("linear_attn", "in_proj_qkvz", "out_proj")
MAMBA = dict.fromkeys(("granitemoehybrid", "bamba", "falcon_h1"), ("mamba", "in_proj", "out_proj"))
MAMBA["nemotron_h"] = ("mixer", "in_proj", "out_proj")
MIXERS = {"lfm2": ("conv", "in_proj", "out_proj"), **LINEAR, **MAMBA}
# What such a layer's output matrix reads: more hidden channels, value heads, or Mamba heads.
INNER = {"lfm2": "inner", **dict.fromkeys(LINEAR, "values"), **dict.fromkeys(MAMBA, "mamba")}
MLPS = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "mixer")
# Heads of full attention are of another size and stay.
TWO_SIZES = ("gemma4_text",)
# One norm, which attention and MLP both read: it counts once.
ONE_NORM = ("cohere", "cohere2")


def catch(model, rows, spans=None):
    """Inputs of every block's submodules, sample by sample.

    Returns a list over samples of {(layer, kind): (token, channel) float64}, kinds "qkv", "mlp" (the two norm
    outputs), "o", "down", "in", "out"; for experts "router" and "expert0", "expert1", ... instead of "mlp" and "down".
    """
    return [_catch_one(model, row, *(spans[i] if spans else (0, len(row)))) for i, row in enumerate(rows)]


def _catch_one(model, row, begin, end):
    found, handles = {}, []
    kind_of_model = model.config.model_type
    attention, reads, writes = ATTENTION.get(kind_of_model, ("self_attn", "q_proj", "o_proj"))
    up, down = MLP.get(kind_of_model, ("up_proj", "down_proj"))

    def keep(layer, kind):
        def hook(module, args):
            found[layer, kind] = args[0].detach().reshape(end - begin, -1).double().numpy()

        return hook

    def around(layer):
        def hook(module, args, kwargs, output):
            states = {"in": args[0] if args else kwargs["hidden_states"]}
            states["out"] = output[0] if isinstance(output, tuple) else output
            for kind, x in states.items():
                found[layer, kind] = x.detach()[0].double().numpy()

        return hook

    def experts(layer):
        def hook(module, args):
            found.update({(layer, kind): x for kind, x in _experts(module, *args).items()})

        return hook

    for n, block in enumerate(model.get_decoder().layers):
        mixers = [(attention, reads, writes, "qkv", "o")]
        if kind_of_model in MIXERS:
            mixers.append((*MIXERS[kind_of_model], "mixer", INNER[kind_of_model]))
        if not getattr(getattr(block, attention, None), "is_sliding", True) and kind_of_model in TWO_SIZES:
            mixers = [(attention, reads, writes, "qkv", "unscored")]
        for mixer, enters, leaves, into, out_of in mixers:
            if hasattr(getattr(block, mixer, None), enters):
                handles.append(getattr(getattr(block, mixer), enters).register_forward_pre_hook(keep(n, into)))
                handles.append(getattr(getattr(block, mixer), leaves).register_forward_pre_hook(keep(n, out_of)))
        mlps = [mlp for mlp in (getattr(block, name, None) for name in MLPS) if mlp is not None]
        sparse = any(hasattr(mlp, "experts") for mlp in mlps)
        for mlp in mlps:
            if hasattr(mlp, "experts"):
                router = mlp.router if hasattr(mlp, "router") else mlp.gate
                handles.append(router.register_forward_pre_hook(keep(n, "mlp")))
                handles.append(mlp.experts.register_forward_pre_hook(experts(n)))
                for name in ("shared_expert", "shared_experts"):
                    if hasattr(mlp, name):
                        handles.append(getattr(mlp, name).down_proj.register_forward_pre_hook(keep(n, "shared")))
            elif hasattr(mlp, down):
                if kind_of_model not in ONE_NORM and not sparse:
                    handles.append(getattr(mlp, up).register_forward_pre_hook(keep(n, "mlp")))
                handles.append(getattr(mlp, down).register_forward_pre_hook(keep(n, "down")))
        handles.append(block.register_forward_hook(around(n), with_kwargs=True))
    with torch.no_grad():
        model.get_decoder()(input_ids=torch.as_tensor(row[begin:end])[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _experts(module, hidden, index, weights):
    """One token and one expert at a time: neurons (token, ffn) and |weight x output| (token, 1), zero if unrouted."""
    hidden, weights = hidden.double(), weights.double()
    found = {}
    for expert in range(len(module.down_proj)):
        into, out_of = halves(module, expert)
        inner = np.zeros((len(hidden), len(into(hidden[0]))))
        norm, usage = np.zeros((len(hidden), 1)), np.zeros((len(hidden), 1))
        for token, place in (index == expert).nonzero().tolist():
            neurons = into(hidden[token])
            inner[token] = neurons.detach().numpy()
            norm[token] = float((weights[token, place] * out_of(neurons)).detach().norm())
            usage[token] = 1
        found |= {f"expert{expert}": inner, f"norm{expert}": norm, f"usage{expert}": usage}
    return found


def halves(module, expert):
    """One expert's two functions: token -> neurons -> output."""
    kind = _gpt_oss if hasattr(module, "alpha") else _gated if hasattr(module, "gate_up_proj") else _plain
    return kind(module, expert)


def _gated(module, expert):
    gate_up, down = module.gate_up_proj[expert].double(), module.down_proj[expert].double()
    half = len(gate_up) // 2
    return lambda x: module.act_fn(gate_up[:half] @ x) * (gate_up[half:] @ x), lambda y: down @ y


def _plain(module, expert):
    up, down = module.up_proj[expert].double(), module.down_proj[expert].double()
    return lambda x: module.act_fn(up @ x), lambda y: down @ y


def _gpt_oss(module, expert):
    """Columns [g0 u0 g1 u1 ...], biases, both clamped at 7; (up + 1) * gate * sigmoid(1.702 gate)."""
    weight, bias = module.gate_up_proj[expert].double(), module.gate_up_proj_bias[expert].double()
    down, down_bias = module.down_proj[expert].double(), module.down_proj_bias[expert].double()

    def into(x):
        both = x @ weight + bias
        gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(min=-7.0, max=7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)

    return into, lambda y: y @ down + down_bias


def aggregate(values, how):
    """mean of absolute values, l2, or variance of a plain list (Minitron, arXiv 2407.14679, section 2.2)."""
    n = len(values)
    if how == "mean":
        return sum(abs(v) for v in values) / n
    if how == "l2":
        return sum(v * v for v in values) ** 0.5
    mean = sum(values) / n
    return sum((v - mean) ** 2 for v in values) / n


def channel_scores(samples, batch, seq):
    """samples: list of (token, channel) -> (channel,): seq over a sample's tokens, then batch over samples."""
    channels = samples[0].shape[1]
    return np.array([aggregate([aggregate(list(x[:, c]), seq) for x in samples], batch) for c in range(channels)])


def scores(caught, num_layers, num_heads, batch="l2", seq="mean", num_experts=0, num_values=0, num_mamba=0):
    """Every axis from what `catch` caught, zeros in layers without it; `num_heads` may be None if no head is wanted."""
    result = {"hidden": 0.0, "layer": []}
    per_layer = {}
    for n in range(num_layers):

        def channels(kind, n=n):
            return channel_scores([found[n, kind] for found in caught], batch, seq)

        def put(axis, values, n=n):
            per_layer.setdefault(axis, {})[n] = np.array(values)

        for kind in ("qkv", "mixer", "mlp", "inner"):
            if (n, kind) in caught[0]:
                result["hidden"] = result["hidden"] + channels(kind)
        heads = (("head", "o", num_heads), ("value_head", "values", num_values), ("mamba_head", "mamba", num_mamba))
        for axis, kind, count in heads:
            if (n, kind) in caught[0]:
                put(axis, [aggregate(list(c), "l2") for c in np.split(channels(kind), count)])
        if (n, "mamba") in caught[0]:  # the same channel of every head
            put("mamba_dim", [aggregate(list(c), "l2") for c in zip(*np.split(channels("mamba"), num_mamba))])
        if (n, "expert0") in caught[0]:
            put("expert", [channels(f"norm{e}")[0] for e in range(num_experts)])
            put("expert_ffn", [channels(f"expert{e}") for e in range(num_experts)])
        for axis, kind in (("ffn", "down"), ("shared_ffn", "shared")):
            if (n, kind) in caught[0]:
                put(axis, channels(kind))
        result["layer"].append(np.mean([block_influence(f[n, "in"], f[n, "out"]) for f in caught]))
    for axis, found in per_layer.items():
        none = np.zeros_like(next(iter(found.values())))
        result[axis] = [found.get(n, none) for n in range(num_layers)]
    return {axis: np.array(values) for axis, values in result.items()}


def block_influence(before, after):
    """1 - mean over tokens of the cosine between (token, hidden) before and after a block."""
    cosines = [a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)) for a, b in zip(before, after)]
    return 1 - sum(cosines) / len(cosines)
