"""The formulas again, slowly and literally: one sample, one token, one channel at a time, in float64, on plain lists of
activations that hooks written for the model class (not derived from the tables) have caught."""

import numpy as np
import torch


def catch(model, rows, spans=None):
    """Inputs of every block's submodules, sample by sample.

    Returns a list over samples of {(layer, kind): (token, channel) float64}, kinds "qkv", "mlp" (the two norm
    outputs), "o", "down", "in", "out".
    """
    caught = []
    for i, row in enumerate(rows):
        begin, end = spans[i] if spans else (0, len(row))
        found = {}
        handles = []

        def keep(layer, kind, x, found=found):
            found[layer, kind] = x.detach()[0].double().numpy()

        def around(layer, keep=keep):
            def hook(module, args, kwargs, output):
                keep(layer, "in", args[0] if args else kwargs["hidden_states"])
                keep(layer, "out", output[0] if isinstance(output, tuple) else output)

            return hook

        for n, block in enumerate(model.model.layers):
            parts = {"qkv": _first(block.self_attn), "o": block.self_attn.o_proj}
            if hasattr(block.mlp, "down_proj"):
                parts |= {"mlp": block.mlp.up_proj if hasattr(block.mlp, "up_proj") else block.mlp.gate_up_proj}
                parts |= {"down": block.mlp.down_proj}
            for kind, module in parts.items():
                handles.append(module.register_forward_pre_hook(lambda m, a, n=n, kind=kind: keep(n, kind, a[0])))
            handles.append(block.register_forward_hook(around(n), with_kwargs=True))
        with torch.no_grad():
            model.model(input_ids=torch.as_tensor(row[begin:end])[None], use_cache=False)
        for handle in handles:
            handle.remove()
        caught.append(found)
    return caught


def _first(attention):
    return attention.qkv_proj if hasattr(attention, "qkv_proj") else attention.q_proj


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


def scores(caught, num_layers, num_heads, batch="l2", seq="mean"):
    """All four dense axes from what `catch` caught."""
    hidden = 0.0
    ffn, head, layer = [], [], []
    for n in range(num_layers):

        def at(kind, n=n):
            return [found[n, kind] for found in caught]

        hidden = hidden + channel_scores(at("qkv"), batch, seq) + channel_scores(at("mlp"), batch, seq)
        ffn.append(channel_scores(at("down"), batch, seq))
        head.append([aggregate(list(c), "l2") for c in np.split(channel_scores(at("o"), batch, seq), num_heads)])
        influence = []
        for found in caught:
            x, y = found[n, "in"], found[n, "out"]
            cosines = [a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)) for a, b in zip(x, y)]
            influence.append(1 - sum(cosines) / len(cosines))
        layer.append(sum(influence) / len(influence))
    return {"hidden": hidden, "ffn": np.array(ffn), "head": np.array(head), "layer": np.array(layer)}
