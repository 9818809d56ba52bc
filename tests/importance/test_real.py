"""On a trained checkpoint: what the scores are for, measured as LM loss right after pruning."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint.reader import open_checkpoint
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.data.prepare import token_files
from minitron_cli.data.source import parse_sources
from minitron_cli.importance.options import Options
from minitron_cli.importance.run import measure
from minitron_cli.prune.target import Target, make_plan, target_shape
from minitron_cli.prune.write import write_pruned

TARGET = {"hidden": 48, "ffn": 128}
WINDOWS, SEQ_LEN = 128, 128


@pytest.fixture(scope="module")
def loss_after(shared_data, tmp_path_factory):
    """loss_after(**options) -> nats per token on held-out text after pruning by scores measured so."""
    model, folder = shared_data / "stories260K", tmp_path_factory.mktemp("real")
    held_out = token_files(parse_sources([str(shared_data / "stories_eval.jsonl")]), model, separator="bos")[0]
    ids = torch.from_numpy(held_out.windows(np.arange(WINDOWS), SEQ_LEN))
    text = (str(shared_data / "stories_train.jsonl"),)

    def after(target=TARGET, **changes):
        options = Options(data=text, samples=512, seq_len=SEQ_LEN, separator="bos", **changes)
        name = "-".join(map(str, changes.values())) or "default"
        measure(model, options, folder / f"{name}.scores")
        checkpoint, wanted = open_checkpoint(model), Target(target)
        shape = target_shape(checkpoint, wanted)
        scores, _ = read_scores(folder / f"{name}.scores")
        output = folder / f"{name}-{'-'.join(map(str, target.values()))}"
        write_pruned(
            checkpoint, make_plan(checkpoint.shape, shape, wanted, scores), output, scores=scores, overwrite=True
        )
        pruned = AutoModelForCausalLM.from_pretrained(output).eval()
        with torch.no_grad():
            logits = pruned(input_ids=ids).logits
        return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))

    return after


@pytest.mark.slow
def test_activation_beats_the_baselines_by_a_wide_margin(loss_after):
    ours = loss_after()
    assert ours < 4.2
    assert ours < loss_after(metric="magnitude") - 0.5
    assert ours < loss_after(metric="random") - 0.5


@pytest.mark.slow
def test_the_papers_aggregation_is_at_least_as_good(loss_after):
    assert loss_after() <= loss_after(seq_agg="l2") + 0.02


@pytest.mark.slow
def test_layers_by_loss_keep_more_than_layers_by_influence(loss_after):
    """Dropping the layer that the LM-loss curve names costs no more than the one that block influence names."""
    assert loss_after({"layer": 4}, layer_score="loss") <= loss_after({"layer": 4}) + 1e-6
