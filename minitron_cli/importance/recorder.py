"""Hooks that fill the running sums during the forward passes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minitron_cli.errors import MinitronError
from minitron_cli.hf.experts import Part, routed
from minitron_cli.hf.hooks import Site, block_input, block_output, replaced
from minitron_cli.hf.parts import decoder_of
from minitron_cli.hf.readers import EXPERT, EXPERT_DAMAGE, EXPERT_FFN, EXPERT_LOGITS, EXPERT_ROUTING
from minitron_cli.hf.samples import Batch
from minitron_cli.importance.experts import join_parts, part_statistics
from minitron_cli.importance.routers import damage, logit_gram, router_of
from minitron_cli.importance.second_moments import SecondMoments
from minitron_cli.importance.statistics import accumulate, block_change, half_of, sequence_statistics
from minitron_cli.importance.sums import COUNT, HALVES, MOMENTS, PER_BLOCK, Row, Rows

EXPERT_AXES = (EXPERT, EXPERT_FFN, EXPERT_ROUTING, EXPERT_LOGITS)


class Recorder:
    """Running sums of every site, and of every block's influence.

    `sums[(axis, row)]` is (half, moment, seq, channel) float64 on the device where the activation lives, `row` counting
    the sites of an axis in layer order; blocks have (half, moment) under ("layer", layer), router logits (half, expert,
    expert). `moments` takes in the same inputs. With `damage` the experts' absence is measured too.
    """

    def __init__(
        self,
        sites: Sequence[Site] = (),
        rows: Rows | None = None,
        moments: SecondMoments | None = None,
        damage: bool = False,
    ) -> None:
        self.moments = moments
        self.damage = damage
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.count = np.zeros(HALVES, np.int64)
        self.batch: Batch | None = None
        self.rows: Rows = {axis: list(found) for axis, found in (rows or {}).items()}
        self._row_of: dict[Site, int] = {}
        self.register(sites)

    def register(self, sites: Sequence[Site]) -> None:
        """Give every site its row, in layer order."""
        for site in sorted(sites, key=lambda s: s.layer):
            every = (*EXPERT_AXES, EXPERT_DAMAGE) if self.damage else EXPERT_AXES
            for axis in every if site.axis == EXPERT_FFN else (site.axis,):
                rows = self.rows.setdefault(axis, [])
                self._row_of[site] = len(rows)
                rows.append(Row(site.layer, site.readers if axis == site.axis else ()))

    def start(self, batch: Batch, *, first: bool = True) -> None:
        """Set the batch of the next forward pass; its samples are counted the `first` time that it comes."""
        self.batch = batch
        if first:
            self.count += [len(range(len(batch.ids))[half_of(batch, half)]) for half in range(HALVES)]

    def add_inputs(self, site: Site, x: Tensor) -> None:
        """Take in one site's input: x (batch, token, channel), or with batch and token flattened."""
        assert self.batch is not None
        x = x.reshape(*self.batch.ids.shape, x.shape[-1])
        self._add((site.axis, self._row_of[site]), sequence_statistics(x, self.batch.spans))
        if self.moments is not None:
            self.moments.take(site, x, self.batch)

    def add_head_inputs(self, output: Any) -> None:
        """Take in what the decoder hands to the head."""
        assert self.batch is not None
        assert self.moments is not None
        self.moments.take_head(output.last_hidden_state, self.batch)

    def add_expert_statistics(self, site: Site, statistics: Mapping[str, Tensor]) -> None:
        """Take in what one layer's experts did: axis -> (batch, seq, channel)."""
        for axis, values in statistics.items():
            self._add((axis, self._row_of[site]), values)

    def add_router_logits(self, site: Site, router: Any, hidden: Tensor) -> None:
        """Take in the logits of one layer's router: hidden (batch x token, hidden)."""
        assert self.batch is not None
        key, size = (EXPERT_LOGITS, self._row_of[site]), len(router.weight)
        if key not in self.sums:
            self.sums[key] = torch.zeros((HALVES, size, size), dtype=torch.float64)
        self.sums[key] = self.sums[key].to(hidden.device)
        for half in range(HALVES):
            self.sums[key][half] += logit_gram(router, hidden, half_of(self.batch, half), self.batch)

    def add_block(self, layer: int, before: Tensor, after: Tensor) -> None:
        """Take in the hidden states around one block: (batch, token, hidden) each."""
        assert self.batch is not None
        for name, values in zip(PER_BLOCK, block_change(before, after.to(before.device), self.batch.spans)):
            self._add((name, layer), values)

    def _add(self, key: tuple[str, int], statistics: Tensor) -> None:
        assert self.batch is not None
        if key not in self.sums:
            size = (HALVES, len(MOMENTS), *statistics.shape[1:])
            self.sums[key] = torch.zeros(size, dtype=torch.float64)
        self.sums[key] = self.sums[key].to(statistics.device)
        accumulate(self.sums[key], statistics, self.batch)

    def raw(self) -> dict[str, np.ndarray]:
        """The sums as arrays: axis -> (half, moment, seq, row, channel), "layer" -> (half, moment, layer), "count"."""
        axes: dict[str, list[np.ndarray]] = {}
        for axis, row in sorted(self.sums):
            axes.setdefault(axis, []).append(self.sums[axis, row].cpu().numpy())
        return {axis: np.stack(found, axis=-1 if axis in PER_BLOCK else -2) for axis, found in axes.items()} | {
            COUNT: self.count.copy()
        }

    def restore(self, raw: Mapping[str, np.ndarray]) -> None:
        """Go on from the sums of an interrupted run; they move to their device when they are next added to."""
        self.count = raw[COUNT].copy()
        for axis, array in raw.items():
            if axis != COUNT:
                for row, sums in enumerate(np.moveaxis(array, -1 if axis in PER_BLOCK else -2, 0)):
                    self.sums[axis, row] = torch.from_numpy(sums.copy())


def check_finite(raw: Mapping[str, np.ndarray], rows: Rows) -> None:
    """Raise a MinitronError that names the first layer with NaN or infinite activations, and the axes that show it."""
    bad: dict[int, set[str]] = {}
    for axis, array in raw.items():
        if axis == COUNT:
            continue
        per_row = array if axis in PER_BLOCK else array.sum(-1)
        finite = np.isfinite(per_row).reshape(-1, per_row.shape[-1]).all(0)
        for row in np.flatnonzero(~finite).tolist():
            bad.setdefault(rows[axis][row].layer if axis in rows else row, set()).add(axis)
    if bad:
        first = min(bad)
        raise MinitronError(
            f"activations of layer {first} are NaN or infinite ({', '.join(sorted(bad[first]))})",
            "measure with --dtype float32; if that does not help, the weights themselves are damaged",
        )


@contextmanager
def recording(model: nn.Module, recorder: Recorder, sites: Sequence[Site], blocks: Mapping[int, str]) -> Iterator[None]:
    """Attach the recorder to every site and decoder block of `model` while the block runs."""

    def at_site(site: Site) -> Any:
        return lambda module, args: recorder.add_inputs(site, args[0])

    def at_block(layer: int) -> Any:
        return lambda module, args, kwargs, output: recorder.add_block(
            layer, block_input(args, kwargs), block_output(output)
        )

    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.module)
            if site.axis == EXPERT_FFN:
                stack.enter_context(replaced({module: recording_forward(model, recorder, site)}))
                continue
            handle = module.register_forward_pre_hook(at_site(site))
            stack.callback(handle.remove)
        for layer, name in blocks.items():
            handle = model.get_submodule(name).register_forward_hook(at_block(layer), with_kwargs=True)
            stack.callback(handle.remove)
        if recorder.moments is not None and recorder.moments.wants_head(blocks):
            handle = decoder_of(model).register_forward_hook(
                lambda module, args, output: recorder.add_head_inputs(output)
            )
            stack.callback(handle.remove)
        yield


def recording_forward(model: nn.Module, recorder: Recorder, site: Site) -> Any:
    """A forward for a layer's experts that records the statistics of each."""
    module, router = model.get_submodule(site.module), router_of(model, site.module)

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        batch = recorder.batch
        parts: list[dict[str, Tensor]] = []
        assert batch is not None

        def record(part: Part) -> None:
            if recorder.moments is not None:
                recorder.moments.take_expert(site, len(parts), part.tokens, part.inner, batch)
            parts.append(part_statistics(part, batch))

        outputs = None
        if recorder.damage:
            outputs = hidden_states.new_empty((*top_k_index.shape, hidden_states.shape[-1]))
        output = routed(module, hidden_states, top_k_index, top_k_weights, record, outputs)
        recorder.add_expert_statistics(site, join_parts(parts))
        recorder.add_router_logits(site, router, hidden_states)
        if outputs is not None:
            changed = damage(module, router, hidden_states, top_k_index, outputs, output, batch)
            recorder.add_expert_statistics(site, {EXPERT_DAMAGE: changed})
        return output

    return forward
