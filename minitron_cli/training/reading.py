"""A teacher whose vocabulary the student's is a cut of: each reads a text in its own tokens.

The two are compared where both have read the same text. There, hidden states stand for the same text. The next token is
learned from the teacher where both read the same one, by its distribution over the tokens that the student has,
renormalised; elsewhere, at a word that the student spells otherwise, from the text. Together that is unbiased: for a
context, the expected loss is least where the student gives the teacher's probabilities to the tokens that stayed, in
the share of the text that they are, and the text's to the first tokens of what is spelled otherwise.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minitron_cli.data.vocabulary.reader import Read
from minitron_cli.training.tensor_record import TensorRecord


@dataclass(frozen=True, slots=True)
class Reading(TensorRecord):
    """A teacher's reading of rows: ids (row, token) int64 of its own and, where documents are apart, their positions.

    places (row, token) int64: the teacher's place at which it has read what the student has at its own; -1: none.
    """

    ids: Tensor
    places: Tensor
    positions: Tensor | None = None

    @staticmethod
    def of(read: Read, apart: bool) -> "Reading":
        """From arrays; documents that are kept `apart` count their positions from 0."""
        positions = torch.from_numpy(positions_since(read.starts)) if apart else None
        return Reading(torch.from_numpy(read.ids), torch.from_numpy(read.places), positions)

    def at_places(self, states: Tensor) -> Tensor:
        """The teacher's states (row, token, hidden) at the student's places; where there is none, any."""
        places = self.places.clamp_min(0).to(states.device)
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def positions_since(starts: np.ndarray) -> np.ndarray:
    """How far each token is from the latest start in its row, or from the row's first: (row, token) bool -> int64."""
    columns = np.broadcast_to(np.arange(starts.shape[1]), starts.shape)
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


class Match(NamedTuple):
    """Where teacher and student have read the same text, all (row, token) bool, and image (V,), the ids there.

    `text`: up to this token; `token`: and it is the same token; `next`: and the next one is the same too.
    """

    image: Tensor
    text: Tensor
    token: Tensor
    next: Tensor


def same_ids(ids: Tensor, image: Tensor, positions: Tensor | None) -> Reading:
    """The reading of a teacher that is given the student's own tokens (row, token)."""
    return Reading(image[ids], torch.arange(ids.shape[1], device=ids.device).expand_as(ids), positions)


def match(reading: Reading, ids: Tensor, image: Tensor) -> Match:
    """Compare a reading with the student's ids (row, token)."""
    text = reading.places >= 0
    token = text & (reading.ids.gather(1, reading.places.clamp_min(0)) == image[ids])
    follows = token & (reading.places == reading.places.roll(1, dims=1) + 1)
    return Match(image, text, token, text & follows.roll(-1, dims=1))
