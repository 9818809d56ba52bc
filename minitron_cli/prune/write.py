"""The verb: plan in, pruned checkpoint out, atomically, with everything that is needed to check it later."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from minitron_cli.checkpoint.atomic import atomic_dir
from minitron_cli.checkpoint.disk import need_space
from minitron_cli.checkpoint.hfconfig import written_config
from minitron_cli.checkpoint.provenance import write_manifest, write_plan
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.tensor_digests import combined
from minitron_cli.checkpoint.validation import objections
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES
from minitron_cli.errors import MinitronError
from minitron_cli.prune.acceptance import rejection
from minitron_cli.prune.change import changes
from minitron_cli.prune.check import check_compensated, check_pruned
from minitron_cli.prune.compensate import Compensation, record
from minitron_cli.prune.expert_refit import ExpertRefit
from minitron_cli.prune.gather_plan import cuts
from minitron_cli.prune.target import layer_list
from minitron_cli.prune.trim import write_model
from minitron_cli.prune.vocabulary import carry_files
from minitron_cli.spec.plan import Plan
from minitron_cli.spec.scores import Scores


def write_pruned(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    *,
    scores: Scores | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    check: bool = False,
    check_data: Sequence[str] = (),
    compensation: Compensation | None = None,
    refit: ExpertRefit | None = None,
    say: Callable[[str], None] = lambda text: None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint that `plan` leaves to `output` and return its manifest.

    The source's digest is taken while its tensors stream by; scores of another model are refused before the output
    takes its name, so nothing is left of it. With `check`, so is a result whose logits are not the masked source's.
    `compensation` refits matrices to the inputs that stay, and after it `refit` experts to the source's output; with
    `check` the result is judged by its loss on `check_data`.
    `facts` are more entries of the manifest.
    """
    config = written_config(checkpoint, plan)
    cut = cuts(checkpoint, plan, changes(checkpoint, plan, compensation))
    need_space(output, sum(c.out.num_bytes for c in cut))
    # Asking transformers about the config takes a second: the streaming goes on meanwhile, and ends at the first block
    # after a rejection.
    with atomic_dir(output, overwrite) as temporary, ThreadPoolExecutor(1) as pool:
        validation = pool.submit(_validate, checkpoint, plan, config)

        def stop_if_rejected() -> None:
            if validation.done():
                validation.result()

        streamed = write_model(temporary, checkpoint, cut, max_shard_bytes, stop_if_rejected, finite=not force)
        validation.result()
        digest = combined(checkpoint.stored, streamed.source)
        if not force:
            _check_measured(scores, compensation, digest)
        write_config(temporary, config)
        carry_files(checkpoint, temporary, plan)
        write_plan(temporary, plan)
        refitted, changed = _refitted(checkpoint, plan, temporary, refit, say)
        return write_manifest(
            temporary,
            verb="prune",
            options=options or {},
            inputs={
                "model": {"name": str(checkpoint.path), "digest": digest, **_dequantised(checkpoint)},
                "scores": dict(scores.provenance) if scores else None,
            },
            parent=checkpoint.path,
            known={name: sha for name, sha in streamed.target.items() if name not in changed},
            shape={"source": dict(plan.source.sizes), "target": dict(plan.left.sizes)},
            max_shard_bytes=max_shard_bytes,
            check=_checked(checkpoint, plan, temporary, check_data, compensation, refit) if check else None,
            **_entries(plan, compensation, refitted),
            **(facts or {}),
        )


def _entries(plan: Plan, compensation: Compensation | None, refitted: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entries on how weights were fitted, and on the layers that stay."""
    return {
        **({"compensation": record(compensation)} if compensation else {}),
        **({"expert_refit": refitted} if refitted else {}),
        "kept_layers": layer_list(plan.kept["layer"]) if "layer" in plan.kept else None,
    }


def _dequantised(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"dequantised": checkpoint.dequantised} if checkpoint.dequantised else {}


def _refitted(
    checkpoint: Checkpoint, plan: Plan, output: Path, refit: ExpertRefit | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], set[str]]:
    """Refit the experts of what was written: what the manifest says of it, and the files that changed."""
    if refit is None:
        return {}, set()
    from minitron_cli.prune.refit_pass import refit_experts  # it needs torch; a plain cut does not

    return refit_experts(checkpoint, output, plan, refit, say)


def _checked(
    checkpoint: Checkpoint, plan: Plan, output: Path, data: Sequence[str], compensation: Compensation | None,
    refit: ExpertRefit | None,
) -> dict[str, Any]:  # fmt: skip
    """The result against the masked source, by logits, or by losses where values were fitted or averaged."""
    made = {"compensated": compensation, "merged": plan.merge, "refitted": refit}
    made_by = [name for name, by in made.items() if by is not None]
    if not made_by:
        return check_pruned(checkpoint, plan, output)
    return check_compensated(checkpoint, plan, output, data, made_by[-1])


def _validate(checkpoint: Checkpoint, plan: Plan, config: Mapping[str, Any]) -> None:
    if (why := objections([config])[0]) is not None:
        raise rejection(checkpoint, plan.target, f"transformers rejects the target's config: {why}")


def _check_measured(scores: Scores | None, compensation: Compensation | None, digest: str) -> None:
    """Refuse scores and Gram matrices that were not measured on the very model that is pruned."""
    measured: list[tuple[str, Mapping[str, Any], str]] = []
    if scores is not None:
        hint = "measure this model with `minitron importance`, or add --force to use them all the same"
        measured.append(("scores", scores.provenance, hint))
    if compensation is not None:
        hint = "measure this model with `minitron importance --second-moments`"
        measured.append(("input Gram matrices", compensation.moments.identity, hint))
    for what, identity, hint in measured:
        model = identity.get("model", {})
        if model.get("digest") != digest:
            raise MinitronError(
                f"the {what} were measured on another model ({model.get('name', 'unnamed')}, "
                f"digest {str(model.get('digest'))[:12]}; this one has {digest[:12]})",
                hint,
            )


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """config.json, as transformers writes it: sorted, indented."""
    import json

    (directory / "config.json").write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
