"""`minitron train`: the trainer of `distill` without a teacher."""

from typing import Annotated

import typer

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import argument, examples, option

NAME = "train"
EXAMPLES = examples(
    "minitron train Llama-3.1-8B --data tokens/ --preset teacher-correction -o Llama-3.1-8B-corrected",
    "minitron train small --from-scratch --data stories.jsonl --steps 2000 --lr 1e-3 -o small-trained",
)


def command(
    model: Annotated[str | None, argument("MODEL", help="the model to train: a directory or a hub id")] = None,
    from_scratch: Annotated[
        bool | None, option("--from-scratch", help="start from new weights, of MODEL's config")
    ] = None,
    data: o.Data = None,
    eval_data: o.EvalData = None,
    output: o.Output = None,
    steps: o.Steps = None,
    tokens: o.Tokens = None,
    batch: o.Batch = None,
    micro_batch: o.MicroBatch = None,
    seq_len: o.SeqLen = None,
    lr: o.Lr = None,
    min_lr: o.MinLr = None,
    warmup: o.Warmup = None,
    schedule: o.Schedule = None,
    decay: o.Decay = None,
    decay_fraction: o.DecayFraction = None,
    branch_from: o.BranchFrom = None,
    phases: o.Phase = None,
    seed: o.Seed = None,
    weight_decay: o.WeightDecay = None,
    betas: o.Betas = None,
    grad_clip: o.GradClip = None,
    spike_guard: o.SpikeGuard = None,
    save_every: o.SaveEvery = None,
    keep: o.Keep = None,
    log_every: o.LogEvery = None,
    eval_every: o.EvalEvery = None,
    eval_windows: o.EvalWindows = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    nproc: o.Nproc = 1,
    checkpoint_activations: o.CheckpointActivations = None,
    compile: o.Compile = None,
    preset: o.Preset = None,
    separator: o.Separator = None,
    cross_doc: o.CrossDoc = None,
    stream: o.Stream = None,
    text_field: o.TextField = None,
    export_dtype: o.ExportDtype = None,
    export_step: o.ExportStep = None,
    tensorboard: o.TensorBoard = None,
    bare_limit: o.BareLimit = None,
    preflight: o.Preflight = True,
    trust_remote_code: o.TrustRemoteCode = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
) -> None:
    """Train MODEL on text: teacher correction, continued pre-training, from scratch. The same line again goes on."""
    raise typer.Exit(o.launch(NAME, dict(locals())))
