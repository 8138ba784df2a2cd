"""Names of stored tensors: the published one behind a wrapper or another layout, and what is no weight of the model."""

MERGED_FILE = "adapter_merged.safetensors"
"""Of a bundle: weights that an adapter changed. They take the place of those of the same name in the other files."""

QUANTIZED_FILE = "quantized.safetensors"
"""Of a bundle: its quantized linear layers, in the bytes that its graphs read."""

# Layouts in use, read without a word: as published on the hub, and as Transformers >= 4.52 names modules in memory.
_LAYOUTS = {"model.visual.": "visual.", "model.language_model.": "model."}

# What training and conversion tools leave before a name. Taken off again and again: several may stand in a row.
_WRAPPERS = {
    "base_model.model.": "",  # PEFT, merged without unloading
    "module.": "",  # DataParallel
    "_orig_mod.": "",  # torch.compile
    "model.model.": "model.",
    "model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.",
}

_DERIVED = (
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_pos_emb.inv_freq",
    ".position_ids",
)


def published_name(stored: str) -> tuple[str, str | None]:
    """The published name, e.g. `visual.blocks.0.attn.qkv.weight`, and the first wrapper before it, if there is one."""
    name, wrapper = stored, None
    while True:
        for prefix, replacement in (*_WRAPPERS.items(), *_LAYOUTS.items()):
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                if prefix in _WRAPPERS and wrapper is None:
                    wrapper = prefix
                break
        else:
            return name, wrapper


def is_derived(name: str) -> bool:
    """Whether it is a buffer that is computed from `config.json`, as old Transformers and converters stored them."""
    return name.endswith(_DERIVED)


def is_adapters(name: str) -> bool:
    """Whether it belongs to an adapter that was not merged, or to the layer that one wraps."""
    return any(
        part.startswith("lora_") or part in {"base_layer", "modules_to_save"} for part in name.split(".")
    )


def is_inside_model(name: str) -> bool:
    """Whether it stands where weights of the model stand, so that leaving it out would change what is computed."""
    return name.startswith(("model.", "visual.", "lm_head."))
