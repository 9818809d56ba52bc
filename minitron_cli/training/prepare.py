"""Everything about a run that can be found out, or refused, before a model is loaded or anything is written."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from minitron_cli.checkpoint.atomic import check_apart
from minitron_cli.checkpoint.provenance import read_plan
from minitron_cli.checkpoint.reader import load_config
from minitron_cli.checkpoint.scores_file import read_scores
from minitron_cli.checkpoint.tensor_digests import source_digest
from minitron_cli.data.order import Order, require_windows
from minitron_cli.data.stream import StreamOrder
from minitron_cli.data.tokens import TokenFile, require_ids_below
from minitron_cli.errors import MinitronError
from minitron_cli.families import family_of
from minitron_cli.families.features import unmasked
from minitron_cli.hf.devices import choose_device
from minitron_cli.hf.process_group import World
from minitron_cli.spec.axes import FLAG_OF_AXIS
from minitron_cli.spec.plan import hidden_origin
from minitron_cli.spec.scores import Scores
from minitron_cli.spec.shape import Shape, check_target
from minitron_cli.training import export
from minitron_cli.training.branch import check_branch
from minitron_cli.training.defaults import (
    export_steps,
    fill_cadence,
    fill_length,
    fill_sharding,
    fill_steps,
    schedule_of,
)
from minitron_cli.training.inputs import (
    Models,
    check_recording,
    digests,
    find_models,
    open_held_out,
    open_order,
    paths_read,
)
from minitron_cli.training.load import empty_student
from minitron_cli.training.masks.gates import gates_of, ranks
from minitron_cli.training.mix import Mixing, mixing_of
from minitron_cli.training.objectives import LOGITS_ONLY, Divergence, Objective, build_objective
from minitron_cli.training.options import Options, check, parse_sizes
from minitron_cli.training.preflight import Size, size_of, training_flops
from minitron_cli.training.remote import check_address
from minitron_cli.training.routers import Counterpart, counterparts
from minitron_cli.training.rows import choose_micro_batch
from minitron_cli.training.schedule import Schedule
from minitron_cli.training.streams import check_streaming, open_streams
from minitron_cli.training.stretches import Stretch, stretches_of
from minitron_cli.training.trainable import restrict


@dataclass(frozen=True, slots=True)
class Shear:
    """What learned masks are to end at, and the scores by whose ranks they start."""

    target: Shape
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated run: options without "decide for me", what it reads, what it minimises. No model is loaded yet.

    `sizes` are the student's and then the teachers', `vocabulary` the least number of embeddings and whose they are.
    `origin` (teacher_hidden, student_hidden) says which channels of the teacher the student has kept, where that is
    known; `export_dtype` is the type of the exported weights, `export_steps` are the steps after which the student is
    exported on the way, `stretches` those with rows of one size. `trained` is how many of the student's parameters
    change. `shear` is there where masks are learned, `mixing` where the weights of the data follow losses.
    `routers` are the layers whose experts correspond to those of the (first) teacher.
    """

    options: Options
    models: Models
    order: Order | StreamOrder
    held_out: tuple[TokenFile, ...]
    sizes: tuple[Size, ...]
    vocabulary: tuple[int, Path]
    objective: Objective
    origin: np.ndarray | None
    schedule: Schedule
    stretches: tuple[Stretch, ...]
    trained: int
    export_dtype: torch.dtype
    export_steps: tuple[int, ...]
    shear: Shear | None = None
    mixing: Mixing | None = None
    routers: tuple[Counterpart, ...] = ()

    def inputs(self) -> dict[str, str]:
        """The identity of the inputs by content, wherever they are: compared on resume, recorded in the manifest."""
        found = digests(self.models, self.order, self.options.from_scratch)
        return found | ({"mix": self.mixing.digest()} if self.mixing else {})


def world_of(options: Options, nproc: int) -> World:
    """The world that `--nproc` starts on this machine; refused where it has fewer GPUs."""
    device = choose_device(options.device)
    if device.type == "cuda" and nproc > torch.cuda.device_count():
        raise MinitronError(
            f"--nproc {nproc}: {torch.cuda.device_count()} GPUs are visible", "start at most one process per GPU"
        )
    return World(0, nproc, device, nproc)


def prepare(options: Options, world: World) -> Prepared:
    """Check the options, find the models, open the data, and turn every "decide for me" into a number.

    Raises MinitronError for everything that would stop the run before its first step, but for memory and disk (see
    `preflight`) and an output that holds something else (see `rundir`). Text is tokenised into the cache.
    """
    check(options)
    _check_machine(options, world)
    models = find_models(options)
    check_apart(Path(options.output), paths_read(options, models))
    if options.mirror is not None:
        check_address(options.mirror, Path(options.output), paths_read(options, models))
    options = fill_length(options, [models.student, *models.teachers])
    assert options.seq_len is not None
    sizes = sizes_of(models, options.seq_len)
    options, order = _open_data(options, models, first=world.rank == 0)
    options = fill_sharding(fill_cadence(options), world.size)
    held_out = open_held_out(options.eval_data, models, options) if options.eval_data else ()
    require_windows(held_out, options.seq_len or 0)
    vocabulary = _vocabulary(models, sizes)
    require_ids_below((*(order.files if isinstance(order, Order) else ()), *held_out), *vocabulary)
    return Prepared(
        options=options,
        models=models,
        order=order,
        held_out=held_out,
        sizes=sizes,
        vocabulary=vocabulary,
        objective=objective_of(options, models, sizes),
        origin=_origin(models, sizes),
        schedule=schedule_of(options, check_branch(options, order) if options.branch_from else None),
        stretches=_stretches(options, models, world),
        trained=_trained(options, models, sizes[0]),
        export_dtype=export.export_dtype(models.student, options.export_dtype),
        export_steps=export_steps(options),
        shear=_shear(options, models, sizes[0].shape) if options.verb == "shear" else None,
        mixing=mixing_of(options, models, order, held_out),
        routers=_routers(options, models, sizes),
    )


def sizes_of(models: Models, seq_len: int) -> tuple[Size, ...]:
    """The student in figures, and the teachers that are models."""
    return tuple(size_of(path, seq_len) for path in (models.student, *models.teachers))


def _stretches(options: Options, models: Models, world: World) -> tuple[Stretch, ...]:
    """The run's stretches with what a device takes at a time, and with the FLOPs of a token."""
    found = []
    for stretch in stretches_of(options):
        student, *teachers = sizes_of(models, stretch.seq_len)
        micro_batch = choose_micro_batch(options, world, stretch)
        found.append(replace(stretch, micro_batch=micro_batch, flops_per_token=training_flops(student, teachers)))
    return tuple(found)


def _trained(options: Options, models: Models, student: Size) -> int:
    """How many of the student's parameters are trained; the patterns are checked on a model without memory."""
    if not (options.train_only or options.freeze):
        return student.parameters
    return restrict(empty_student(models.student, options.trust_remote_code), options)


def _shear(options: Options, models: Models, source: Shape) -> Shear:
    """The target of learned masks, checked against the source's config; scores must be of the very source."""
    family = family_of(str(load_config(models.student)["model_type"]))
    sizes = parse_sizes(options.sizes)
    if unknown := [f"--{FLAG_OF_AXIS[axis]}" for axis in sizes if axis not in source]:
        raise MinitronError(f"{family.name} models have no {', '.join(unknown)}", "`minitron inspect` names its axes")
    if "vocab" in sizes:
        raise MinitronError(
            "learned masks do not choose tokens", "cut the vocabulary with `minitron prune --vocab N --data TEXT`"
        )
    if reasons := [why for axis, why in unmasked(family).items() if axis in ("", *sizes)]:
        raise MinitronError(
            f"no masks can be learned for this {family.name} model: {'; '.join(reasons)}",
            "cut it with `minitron importance` and `minitron prune`",
        )
    target = source.with_(**sizes)
    check_target(family, source, target)
    gates = gates_of(source, target)
    if target.get("expert_active") != source.get("expert_active"):
        raise MinitronError(
            "learned masks cannot change how many experts a token is routed to",
            "leave out --experts-per-token; `minitron prune` can lower it afterwards",
        )
    if source.kinds and target["layer"] != source["layer"]:
        raise MinitronError(
            f"learned masks cannot cut the layers of a {family.name} model: they are of several kinds",
            "leave out --layers; `minitron prune --layers` cuts them before or afterwards",
        )
    if not gates:
        raise MinitronError("nothing is cut: the source has these sizes already", "give a smaller size")
    if models.scores is None:
        return Shear(target, None)
    scores = read_scores(models.scores)[0]
    if scores.provenance.get("model", {}).get("digest") != source_digest(models.student):
        raise MinitronError(
            f"{models.scores} was measured on another model than {models.student}",
            "measure this model with `minitron importance`",
        )
    for gate in gates:
        ranks(gate, scores, source)  # refuses scores that are not of these sizes
    return Shear(target, scores)


def _check_machine(options: Options, world: World) -> None:
    if options.teacher_device:
        choose_device(options.teacher_device, "--teacher-device")
    if world.size % options.replicate:
        raise MinitronError(
            f"--replicate {options.replicate}: {world.size} processes do not make as many copies of equal size",
            "give the number of nodes, or leave it out",
        )
    if options.tensorboard and find_spec("tensorboard") is None:
        raise MinitronError("--tensorboard needs the tensorboard package", "pip install 'minitron[tensorboard]'")


def _open_data(options: Options, models: Models, *, first: bool) -> tuple[Options, Order | StreamOrder]:
    """The rows to train on, and for how many steps; the `first` rank reads cached logits whole to check them."""
    if options.stream:
        check_streaming(options, models)
        return fill_steps(options), open_streams(options, models, None, 0)
    order = open_order(options, models)
    blocks = sum(f.num_windows(order.block) for f in order.files) - order.num_lost
    options = fill_steps(options, blocks * order.block)
    away = models.recording.path if models.recording is not None else models.served
    if away is not None and options.mix == "dynamic":
        raise MinitronError(
            f"{away} cannot teach a run with --mix dynamic: which rows that reads is not known in advance",
            "give the teacher itself: --teacher MODEL",
        )
    if models.served is not None:
        models.served.check_length(order.block)
    if models.recording is not None:
        check_recording(models.recording, order, options.steps or 0)
        if first:
            models.recording.require_unaltered()
    return options, order


def _vocabulary(models: Models, sizes: tuple[Size, ...]) -> tuple[int, Path]:
    """The least number of ids that a model, or cached logits, can take, and whose it is."""
    found = list(zip(_compared(models, sizes), (models.student, *models.teachers)))
    if models.recording is not None:
        found.append((models.recording.header.vocab, models.recording.path))
    return min(found)


def _compared(models: Models, sizes: tuple[Size, ...]) -> list[int]:
    """How many of the student's ids each model has logits for, the student's first; padded ids count."""
    student, *teachers = (size.shape["vocab"] for size in sizes)
    readers = models.readers or (None,) * len(teachers)
    return [student, *(rows if reader is None else len(reader.image) for rows, reader in zip(teachers, readers))]


def objective_of(options: Options, models: Models, sizes: tuple[Size, ...]) -> Objective:
    """The loss that the options ask for between these models; plain cross-entropy where there is no teacher."""
    divergence = Divergence(options.kind, options.temperature, options.beta)
    if models.recording is not None or models.served is not None:
        vocab = None if models.recording is None else models.recording.header.vocab
        return Objective(divergence=divergence, ce_weight=options.ce_weight, vocab=vocab)
    student, *teachers = (size.shape for size in sizes)
    if not teachers:
        return LOGITS_ONLY
    plan = read_plan(models.student)
    heads = set(_compared(models, sizes))
    return build_objective(
        options.loss,
        student["layer"],
        teachers[0]["layer"],
        layer_map=options.layer_map,
        kept_layers=None if plan is None or "layer" not in plan.kept else plan.kept["layer"].tolist(),
        divergence=divergence,
        ce_weight=options.ce_weight,
        metric=options.hidden_loss,
        shares=models.shares,
        # The tokenizers agree: where heads are padded to different lengths, only the ids that all have are compared.
        vocab=min(heads) if len(heads) > 1 else None,
    )


def _origin(models: Models, sizes: tuple[Size, ...]) -> np.ndarray | None:
    """What the student's channels were, when it was cut from a model as wide as its (first) teacher."""
    plan = read_plan(models.student)
    if plan is None or not models.teachers or plan.source["hidden"] != sizes[1].shape["hidden"]:
        return None
    return hidden_origin(plan)


def _routers(options: Options, models: Models, sizes: tuple[Size, ...]) -> tuple[Counterpart, ...]:
    """The layers whose routers are compared: not across vocabularies, where the models read other tokens."""
    if options.verb != "distill" or not models.teachers or any(models.readers):
        return ()
    return counterparts(read_plan(models.student), *(size.shape for size in sizes[:2]))
