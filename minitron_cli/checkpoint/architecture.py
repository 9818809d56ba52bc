"""A model by its config.json alone: enough to count, plan and estimate before its files exist."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from minitron_cli.checkpoint.headers import ITEM_BYTES
from minitron_cli.checkpoint.hfconfig import config_for
from minitron_cli.checkpoint.reader import Checkpoint, normal_config
from minitron_cli.families import family_of, wrapper_of
from minitron_cli.spec.axes import Weight
from minitron_cli.spec.family import Family
from minitron_cli.spec.shape import Shape, copies, num_elements, num_parameters, shape_of

_ITEM_BYTES = {"float64": 8, "float32": 4}  # of a config's dtype; everything else that models are stored in has two


Beside = tuple[tuple[Weight, int], ...]  # lines, and the bytes of an element on disk


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as its config describes it: its family, its sizes, the weights that it must have.

    Of a model of text and images that is the text model; `beside` are the weights beside it, where they are known.
    """

    config: Mapping[str, Any]
    family: Family
    shape: Shape
    beside: Beside = ()

    @property
    def parameters(self) -> int:
        return num_parameters(self.family.expected(self.config), self.shape)

    @property
    def non_embedding(self) -> int:
        """Parameters without the input embedding and the head."""
        return num_parameters(self.family.expected(self.config), self.shape, embedding=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights on disk, without those beside a text model."""
        return sum(num_elements(w, self.shape) * copies(w, self.shape) * n for w, n in stored_weights(self).items())

    @property
    def disk_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return self.num_bytes + beside_bytes(self, self.shape)

    def resized(self, shape: Shape) -> "Architecture":
        """The same model with the sizes of `shape`. Of another depth, which layers it has is not known."""
        lists = self.family.per_layer if shape["layer"] != self.shape["layer"] else ()
        config = {key: value for key, value in self.config.items() if key not in lists}
        return replace(self, config=config_for(config, self.family, shape), shape=shape)


def architecture_of(config: Mapping[str, Any], beside: Beside = ()) -> Architecture:
    """Read a config.json dictionary; of a model of text and images, its text model's, with what is `beside` it.

    Raises MinitronError where it is not a complete config of a known family.
    """
    wrapper = wrapper_of(str(config.get("model_type")))
    config = normal_config(config)
    family = family_of(str(config.get("model_type")))
    if wrapper is not None:
        family = wrapper.around(family)
    return Architecture(config, family, shape_of(family, config), beside)


def beside_bytes(model: Checkpoint | Architecture, shape: Shape) -> int:
    """Bytes of what stands beside a text model of `shape`; 0 where nothing does."""
    if isinstance(model, Architecture):
        return sum(num_elements(weight, shape) * item for weight, item in model.beside)
    return sum(num_elements(m.weight, shape) * ITEM_BYTES[model.tensors[n].dtype] for n, m in model.beside.items())


def item_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of an element on disk by a config.json dictionary: of its dtype, bfloat16 where it names none."""
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return _ITEM_BYTES.get(dtype, 2)


def stored_weights(model: Checkpoint | Architecture) -> dict[Weight, int]:
    """Each line of the table that the model has, and the bytes that an element of it takes on disk.

    A config alone names one dtype for all; bfloat16 where it names none.
    """
    if isinstance(model, Checkpoint):
        found = {m.weight: ITEM_BYTES[model.tensors[name].dtype] for name, m in model.matches.items()}
        return {weight: item for weight, item in found.items() if not weight.junk}
    lines = [weight for weight in model.family.expected(model.config) if copies(weight, model.shape)]
    return dict.fromkeys(lines, item_bytes(model.config))
