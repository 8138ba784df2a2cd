"""The model families that can be exported, by the `model_type` of `config.json`, and what each must say.

A family is one folder under `export/models/` and one row here. What runs in a server reads its configuration alone;
the reference, and the map of weights that follows from it, load PyTorch when they are asked for.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from export.errors import UserError
from export.models.configuration import ModelConfig
from export.models.qwen2_vl.family import Qwen2VLFamily

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.contract import GraphName
    from export.inputs import Grid
    from export.models.pieces import GraphRecipe
    from export.models.qwen2_vl.model import Qwen2VL
    from export.models.qwen2_vl.ranks import Joint
    from export.weights.slices import Slice


class Family(Protocol):
    """One architecture."""

    @property
    def model_type(self) -> str:
        """What `config.json` says."""

    @property
    def architecture(self) -> str:
        """Transformers' class whose graphs are exported."""

    @property
    def modules(self) -> Mapping[str, str]:
        """The reference's module by the scope of a graph's nodes, both without a layer's number: {"layers":
        "model.layers"}. "" for a method of the whole model.
        """

    def read_config(self, content: Mapping[str, Any], source: str) -> ModelConfig:
        """Build the typed configuration.

        Raises:
            UserError: what is missing, does not fit, or would not be computed; `source` names the file.
        """

    def weight_shapes(self, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """The checkpoint map: every weight by its published name, which is its path in the reference."""

    def reference(self, config: ModelConfig) -> "Qwen2VL":
        """The PyTorch model without values: on the meta device."""

    def rank_config(self, config: ModelConfig, rank: int, num_ranks: int) -> ModelConfig:
        """The configuration of one rank's decoder in a tensor-parallel group.

        Raises:
            UserError: the model's sizes do not divide by the number of ranks; it names those that do.
        """

    def slice_of(self, name: str, config: ModelConfig, num_key_value_heads: int) -> "Slice | None":
        """The part of a weight that a rank of that configuration has; None: all of it.

        `num_key_value_heads` are the whole model's.
        """

    def joint_of(self, reference: str) -> "Joint":
        """How the ranks of a divided decoder hold a value of the reference's, by its probe's name."""

    def pieces(self, graph: "GraphName", config: ModelConfig, dtype: str) -> "GraphRecipe":
        """What of the reference is traced for a graph that computes in `dtype`, and where copies of it go."""

    def position_ids(
        self, token_ids: "NDArray[np.int64]", grids: "Sequence[Grid]", config: ModelConfig
    ) -> "tuple[NDArray[np.int32], int]":
        """Where the decoder sees each token of a prompt: ids [3, S], and what later ids are ahead of cache positions.

        Raises:
            UserError: the prompt's image and video tokens do not fit the grids.
        """


FAMILIES: dict[str, Family] = {family.model_type: family for family in (Qwen2VLFamily(),)}


def module_of_scope(family: Family, scope: str) -> str:
    """The reference's module that a scope of a graph's nodes stands for: `model.layers.3` for `layers.3`."""
    head, dot, rest = scope.partition(".")
    return family.modules[head] + dot + rest


def family_of(model_type: object, source: str = "config.json") -> Family:
    """The family of a `model_type`.

    Raises:
        UserError: there is none.
    """
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UserError(
            f"{source}: model_type is {model_type!r}, expected {' or '.join(map(repr, FAMILIES))}. "
            "qv-export serves the Qwen2-VL family only."
        )
    return family
