"""`minitron distill`: train a student towards a teacher's distribution."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.cli import training_options as o
from minitron_cli.cli.common import argument, examples, option

NAME = "distill"
EXAMPLES = examples(
    "minitron distill small --teacher meta-llama/Llama-3.1-8B --data tokens/ --tokens 1B -o small-distilled",
    "minitron distill small --teacher big --data a.jsonl:0.7 --data code/:0.3 --preset llama-3.1-minitron --nproc 8",
)


def command(
    model: Annotated[str | None, argument("STUDENT", help="the model to train: a directory or a hub id")] = None,
    teacher: Annotated[list[str] | None, option("--teacher", help="MODEL[:SHARE] to learn from; repeatable")] = None,
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
    loss: Annotated[
        str | None, option("--loss", help="auto, logits, or logits+hidden[+embedding] [default: auto]")
    ] = None,
    kind: Annotated[
        str | None, option("--kind", help="forward_kl, reverse_kl, jsd or soft_ce [default: forward_kl]")
    ] = None,
    temperature: Annotated[float | None, option("--temperature", help="of both softmaxes [default: 1]")] = None,
    beta: Annotated[
        float | None, option("--beta", help="of --kind jsd: the teacher's share of the mixture [default: 0.5]")
    ] = None,
    ce_weight: Annotated[float | None, option("--ce-weight", help="share of the hard-label loss [default: 0]")] = None,
    hidden_loss: Annotated[str | None, option("--hidden-loss", help="cosine or mse [default: cosine]")] = None,
    layer_map: Annotated[
        list[str] | None,
        option("--layer-map", help="STUDENT:TEACHER blocks, or kept [default: the third last of both]"),
    ] = None,
    teacher_dtype: Annotated[
        str | None, option("--teacher-dtype", help="float32 or bfloat16 [default: as --dtype]")
    ] = None,
    teacher_device: Annotated[str | None, option("--teacher-device", help="[default: the student's]")] = None,
    shard_teacher: Annotated[
        bool | None, option("--shard-teacher/--no-shard-teacher", help="split it over the devices")
    ] = None,
    record_teacher: Annotated[
        Path | None, option("--record-teacher", help="only write the teacher's top k there, to train from later")
    ] = None,
    top_k: Annotated[int, option("--top-k", help="ids to record for each token")] = 128,
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
    """Train STUDENT to predict as its teacher does; typed again, the same line goes on where it stopped."""
    given = dict(locals())
    directory, top_k = given.pop("record_teacher"), given.pop("top_k")
    raise typer.Exit(o.launch(NAME, given) if directory is None else o.record(given, directory, top_k))
