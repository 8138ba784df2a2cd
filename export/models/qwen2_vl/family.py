"""Qwen2-VL as a family: its configuration, its reference and the map of weights that it is, its graphs' pieces."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.models.configuration import ModelConfig
from export.models.qwen2_vl.config import read_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.contract import GraphName
    from export.inputs import Grid
    from export.models.pieces import GraphRecipe
    from export.models.qwen2_vl.model import Qwen2VL
    from export.models.qwen2_vl.ranks import Joint
    from export.weights.slices import Slice


class Qwen2VLFamily:
    """See `export.models.families.Family`."""

    model_type = "qwen2_vl"
    architecture = "Qwen2VLForConditionalGeneration"
    modules: Mapping[str, str] = {
        "patch_embed": "visual.patch_embed",
        "blocks": "visual.blocks",
        "merger": "visual.merger",
        "embed": "",
        "layers": "model.layers",
        "project": "",
    }

    def read_config(self, content: Mapping[str, Any], source: str) -> ModelConfig:
        return read_config(content, source)

    def weight_shapes(self, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """A tied head is no parameter of its own, so it is not in the map."""
        return {name: tuple(weight.shape) for name, weight in self.reference(config).named_parameters()}

    def reference(self, config: ModelConfig) -> "Qwen2VL":
        import torch  # noqa: PLC0415 - seconds, and absent from a server

        from export.models.qwen2_vl.model import Qwen2VL  # noqa: PLC0415

        with torch.device("meta"):
            return Qwen2VL(config)

    def rank_config(self, config: ModelConfig, rank: int, num_ranks: int) -> ModelConfig:
        from export.models.qwen2_vl.ranks import rank_config  # noqa: PLC0415 - NumPy, as below

        return rank_config(config, rank, num_ranks)

    def slice_of(self, name: str, config: ModelConfig, num_key_value_heads: int) -> "Slice | None":
        from export.models.qwen2_vl.ranks import slice_of  # noqa: PLC0415 - NumPy, which a configuration needs not

        return slice_of(name, config, num_key_value_heads)

    def joint_of(self, reference: str) -> "Joint":
        from export.models.qwen2_vl.ranks import joint_of  # noqa: PLC0415 - as above

        return joint_of(reference)

    def pieces(self, graph: "GraphName", config: ModelConfig, dtype: str) -> "GraphRecipe":
        from export.models.qwen2_vl.pieces import decoder_pieces, vision_pieces  # noqa: PLC0415 - torch

        return vision_pieces(config, dtype) if graph == "vision" else decoder_pieces(config, dtype)

    def position_ids(
        self, token_ids: "NDArray[np.int64]", grids: "Sequence[Grid]", config: ModelConfig
    ) -> "tuple[NDArray[np.int32], int]":
        from export.models.qwen2_vl.positions import mrope_position_ids  # noqa: PLC0415 - NumPy, which a configuration needs not

        return mrope_position_ids(token_ids, grids, config)
