"""Qwen2-VL's blocks as pieces of its two graphs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from export.contract import PAST, PRESENT, cache_name, cache_parts, decoder_contract, vision_contract
from export.models.configuration import DecoderConfig, ModelConfig
from export.models.families import module_of_scope
from export.models.pieces import (
    Copy,
    GraphRecipe,
    Piece,
    PieceInput,
    contract_inputs,
    table_inputs,
    torch_dtype,
)
from export.models.qwen2_vl import decoder, vision
from export.models.qwen2_vl.decoder import DecoderLayer
from export.models.qwen2_vl.family import Qwen2VLFamily
from export.models.qwen2_vl.model import Qwen2VL
from export.models.qwen2_vl.ranks import first_row
from export.models.qwen2_vl.vision import PatchEmbed, PatchMerger, VisionBlock


def vision_pieces(model: ModelConfig, dtype: str) -> GraphRecipe:
    """Patch embedding, blocks, merger."""
    config, contract = model.vision, vision_contract(model, dtype)
    hidden = PieceInput("x", torch_dtype(dtype), ("P", config.embed_dim))
    tables = dict(zip(("frequencies", "axis_of"), vision.patch_rotary_tables(config), strict=True))
    geometry = contract_inputs(contract, ("positions", "cu_seqlens", "segment_range"))
    blocks = [_copy(f"blocks.{i}") for i in range(config.depth)]
    return GraphRecipe(
        contract,
        pieces=(
            Piece(
                lambda: PatchEmbed(config),
                contract_inputs(contract, ["patches"]),
                ["x"],
                [_copy("patch_embed")],
            ),
            Piece(lambda: VisionBlock(config), [hidden, *geometry, *table_inputs(tables)], ["x"], blocks),
            Piece(lambda: PatchMerger(config), [hidden], ["visual_embeds"], [_copy("merger")]),
        ),
        tables=tables,
        tables_scope="visual.rotary",
        doc="Qwen2-VL vision encoder, exported by qv-export",
    )


def decoder_pieces(model: ModelConfig, dtype: str) -> GraphRecipe:
    """Token embedding, layers, vocabulary projection."""
    config, contract = model.decoder, decoder_contract(model, dtype)
    hidden = PieceInput("x", torch_dtype(dtype), ("B", "S", config.hidden_size))
    tables = dict(zip(("frequencies", "axis_of"), decoder.mrope_tables(config), strict=True))
    parts = cache_parts(config)
    specs = [contract.input(cache_name(PAST, part, 0)) for part in parts]
    past = [
        PieceInput(f"{PAST}_{part}", torch_dtype(spec.dtype), spec.shape)
        for part, spec in zip(parts, specs, strict=True)
    ]
    places = contract_inputs(contract, ("position_ids", "write_index", "kv_lengths"))
    vocabulary = _vocabulary_tables(config)
    return GraphRecipe(
        contract,
        pieces=(
            Piece(
                lambda: _without_layers(model),
                [*contract_inputs(contract, ("token_ids", "visual_embeds")), *table_inputs(vocabulary)],
                ["x"],
                [_copy("embed")],
                method="embed",
            ),
            Piece(
                lambda: DecoderLayer(config),
                [hidden, *places, *table_inputs(tables), *past],
                ["x", *(f"{PRESENT}_{part}" for part in parts)],
                [_layer_copy(i, parts) for i in range(config.num_hidden_layers)],
            ),
            Piece(
                lambda: _without_layers(model),
                [hidden, *contract_inputs(contract, ["logits_index"])],
                ["logits"],
                [_copy("project")],
                method="project",
            ),
        ),
        tables={**tables, **vocabulary},
        tables_scope="model.rotary",
        doc="Qwen2-VL decoder, exported by qv-export",
    )


def _vocabulary_tables(config: DecoderConfig) -> dict[str, Tensor]:
    """Which part of the vocabulary a rank has."""
    if config.num_ranks == 1:
        return {}
    first_token = config.rank * config.tokens_of_rank
    return {"first_token": torch.tensor(first_token), "first_row": torch.tensor(first_row(config))}


def _copy(scope: str) -> Copy:
    return Copy(scope, module_of_scope(Qwen2VLFamily(), scope))


def _layer_copy(layer: int, parts: Sequence[str]) -> Copy:
    names = {f"{time}_{part}": cache_name(time, part, layer) for part in parts for time in (PAST, PRESENT)}
    return replace(_copy(f"layers.{layer}"), names=names)


def _without_layers(config: ModelConfig) -> Qwen2VL:
    # Untied, so that the head keeps a parameter of its own; `Weights` knows where its bytes are.
    decoder_config = replace(config.decoder, num_hidden_layers=0, tie_word_embeddings=False)
    return Qwen2VL(replace(config, vision=replace(config.vision, depth=0), decoder=decoder_config))
