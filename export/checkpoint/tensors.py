"""The tensors of a checkpoint, and where their bytes lie.

Only headers are read here: a 72B checkpoint opens as fast as a tiny one. One exception: a head that is stored beside
the token embedding it should be tied to is compared with it. Which weights there must be, the family's reference says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.checkpoint.config import DecoderConfig, ModelConfig, config_from_json
from export.dtypes import GRAPH_DTYPES
from export.errors import UserError
from export.files.json_object import read_json_object
from export.models.families import family_of
from export.quantization.packed import CODE_SUFFIXES, PackedLinear, take_packed
from export.quantization.side_file import StoredLinear, stored_linears
from export.weights.compare import have_equal_values
from export.weights.names import (
    MERGED_FILE,
    QUANTIZED_FILE,
    is_adapters,
    is_derived,
    is_inside_model,
    published_name,
)
from export.weights.safetensors_file import StoredTensor, read_safetensors_header

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

_MAX_LISTED_PROBLEMS = 40
_MAX_LISTED_EXTRAS = 10


@dataclass(frozen=True)
class Checkpoint:
    """A checked Qwen2-VL checkpoint: its configuration and every tensor the model needs, by published name."""

    directory: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    """By published name, e.g. `visual.blocks.0.attn.qkv.weight`, whatever the file calls them. Quantized ones are not
    among them."""

    linears: Mapping[str, StoredLinear]
    """Quantized linear layers as a bundle stores them, by the published name of the weight."""

    packed: Mapping[str, PackedLinear]
    """Those that are stored only as the tool that quantized them did: an export makes the former of them."""

    weight_files: tuple[Path, ...]
    """All of them, as the index names them, also one that holds nothing but an untied copy of a tied head."""

    config_changes: Mapping[str, Any]
    """Values of `config.json` that the weights contradict, by key, as they must be read."""

    notes: tuple[str, ...]
    """What its user should know: where the weights and `config.json` said different things, and who was followed."""

    @property
    def dtype(self) -> str:
        """As `config.json` states it, or else that of most weights.

        Tools that quantize store float16, as their kernels compute: the model is one of bfloat16, and overflows in it.
        """
        if self.config.quantization is not None and self.config.dtype != "float32":
            return "bfloat16"
        if self.config.dtype is not None:
            return self.config.dtype
        sizes = Counter[str]()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.length_bytes
        return sizes.most_common(1)[0][0]

    def quantized(self) -> list[StoredLinear | PackedLinear]:
        """Every quantized linear layer, however it is stored."""
        return [*self.linears.values(), *self.packed.values()]

    def names_by_file(self) -> dict[Path, list[str]]:
        """Published names of the tensors in each weight file."""
        return {
            path: [name for name, tensor in self.tensors.items() if tensor.path == path]
            for path in self.weight_files
        }


def open_checkpoint(directory: Path, weight_files: Sequence[Path] | None = None) -> Checkpoint:
    """Read a checkpoint's configuration and headers, and check every tensor's presence, shape, dtype and extent.

    Args:
        directory: a Hugging Face directory, or a bundle.
        weight_files: its weights, where they were converted or merged; None: those in the directory.

    Raises:
        UserError: with all problems listed at once.
    """
    _refuse_adapter(directory)
    content = read_json_object(directory / "config.json")
    config = config_from_json(content, str(directory / "config.json"))
    family = family_of(config.model_type)
    weight_files = tuple(weight_files or _weight_paths(directory))
    found, wrappers, problems = _found_tensors([path for path in weight_files if path.name != QUANTIZED_FILE])
    notes = [*_architecture_notes(content, family.architecture), *_wrapper_notes(wrappers)]
    parts = _quantized_parts(weight_files)
    quantized = {part.name.rpartition(".")[0] for part in parts} | _modules_of_codes(found)
    decoder, changes = _follow_weights(found, quantized, config.decoder, notes)
    config = replace(config, decoder=decoder)
    expected = family.weight_shapes(config)
    linears = stored_linears(parts, expected)
    expected = {name: shape for name, shape in expected.items() if name not in linears}
    for name in [name for name in found if name not in expected and _is_replaced(name, linears)]:
        del found[name]
    packed = take_packed(found, expected, config.quantization, problems) if config.quantization else {}
    expected = {name: shape for name, shape in expected.items() if name not in packed}
    outside = [name for name in found if name not in expected and not is_inside_model(name)]
    problems += _problems(found, expected)
    if config.quantization is None and (codes := [name for name in found if name.endswith(CODE_SUFFIXES)]):
        problems.insert(
            0, f"{codes[0]}: quantized, but {directory / 'config.json'} has no quantization_config"
        )
    if problems:
        problems += [f"{name}: not part of Qwen2-VL (in {found[name].path.name})" for name in outside]
        raise UserError(_problem_list(directory, problems))
    if outside:
        shown = ", ".join(outside[:_MAX_LISTED_EXTRAS]) + (
            ", ..." if len(outside) > _MAX_LISTED_EXTRAS else ""
        )
        notes.append(f"{len(outside)} stored tensors are not part of Qwen2-VL and are left out: {shown}.")
    tensors = {name: found[name] for name in expected}
    return Checkpoint(directory, config, tensors, linears, packed, weight_files, changes, tuple(notes))


def _quantized_parts(weight_files: Sequence[Path]) -> list[StoredTensor]:
    paths = [path for path in weight_files if path.name == QUANTIZED_FILE]
    return [tensor for path in paths for tensor in read_safetensors_header(path)]


def _modules_of_codes(found: Mapping[str, StoredTensor]) -> set[str]:
    """Names of weights that are stored as codes, in whatever layout."""
    return {
        f"{name.rpartition('.')[0]}.weight"
        for name, tensor in found.items()
        if tensor.dtype not in GRAPH_DTYPES
    }


def _is_replaced(name: str, linears: Mapping[str, StoredLinear]) -> bool:
    """Whether it says in another layout what a quantized layer of the bundle says."""
    return f"{name.rpartition('.')[0]}.weight" in linears


def weight_files_of(directory: Path) -> list[Path]:
    """The weight files of a checkpoint whose configuration can be exported; none of them is read.

    Raises:
        UserError: no such configuration, no weights, or some are missing.
    """
    _refuse_adapter(directory)
    config_from_json(read_json_object(directory / "config.json"), str(directory / "config.json"))
    return _weight_paths(directory)


def _refuse_adapter(directory: Path) -> None:
    if (directory / "config.json").exists() or not (directory / "adapter_config.json").exists():
        return
    base = read_json_object(directory / "adapter_config.json").get("base_model_name_or_path")
    raise UserError(
        f"{directory} is a PEFT adapter, not a model: export its base model ({base}) with --adapter {directory}"
    )


def _found_tensors(
    weight_files: Sequence[Path],
) -> tuple[dict[str, StoredTensor], Counter[str], list[str]]:
    """Every stored weight by its published name, how often each wrapper stood before one, and names that came twice."""
    found: dict[str, StoredTensor] = {}
    wrappers = Counter[str]()
    problems = []
    for path in sorted(weight_files, key=lambda path: path.name == MERGED_FILE):
        for tensor in read_safetensors_header(path):
            name, wrapper = published_name(tensor.name)
            if is_derived(name):
                continue
            if wrapper:
                wrappers[wrapper] += 1
            if name in found and path.name != MERGED_FILE:
                problems.append(f"{name}: stored twice, in {found[name].path.name} and {path.name}")
            found[name] = tensor
    return found, wrappers, problems


def _architecture_notes(content: Mapping[str, Any], exported: str) -> list[str]:
    stated = content.get("architectures")
    if stated in (None, [], [exported]):
        return []
    note = (
        f"architectures is {stated!r}: it is exported as {exported}, which generates text; what another class adds "
        "to it, such as a pooling or a value head, is not."
    )
    return [note]


def _wrapper_notes(wrappers: Counter[str]) -> list[str]:
    return [
        f"{count} names of tensors begin with {wrapper!r}, left by a tool: they are read without it."
        for wrapper, count in wrappers.items()
    ]


def _follow_weights(
    found: dict[str, StoredTensor], quantized: AbstractSet[str], config: DecoderConfig, notes: list[str]
) -> tuple[DecoderConfig, dict[str, Any]]:
    """The configuration as the weights have it, and the values of `config.json` that they contradict."""
    if quantized & {_EMBEDDING, _HEAD}:
        tied, head_notes = _HEAD not in quantized | found.keys(), list[str]()
    else:
        tied, head_notes = _resolve_head(found, config.tie_word_embeddings)
    notes += head_notes
    followed = replace(config, tie_word_embeddings=tied)
    embedding, head = found.get(_EMBEDDING), found.get(_HEAD)
    num_rows = embedding.shape[0] if embedding and embedding.shape else 0
    if num_rows > config.vocab_size and (head is None or head.shape[:1] == (num_rows,)):
        notes.append(
            f"vocab_size is {config.vocab_size}, but the tables have {num_rows} rows: all are exported."
        )
        followed = replace(followed, vocab_size=num_rows)
    changed = [
        name
        for name in ("tie_word_embeddings", "vocab_size")
        if getattr(followed, name) != getattr(config, name)
    ]
    return followed, {name: getattr(followed, name) for name in changed}


def _resolve_head(found: dict[str, StoredTensor], stated: bool) -> tuple[bool, list[str]]:
    """Whether the head is the token embedding, as Transformers 5 decides it: what is stored outweighs the flag.

    A head that is only a copy is taken out of `found`, and one that stands for both takes the embedding's place.
    """
    embedding, head = found.get(_EMBEDDING), found.get(_HEAD)
    if head is None:
        note = f"tie_word_embeddings is false, but there is no {_HEAD}: the token embedding projects too."
        return True, [] if stated or embedding is None else [note]
    if not stated:
        return False, []
    if embedding is None:
        found[_EMBEDDING] = found.pop(_HEAD)
        return True, []
    if have_equal_values(embedding, head):
        del found[_HEAD]
        return True, []
    note = (
        f"tie_word_embeddings is true, but {_HEAD} is stored and differs from {_EMBEDDING}: it is used as the head. "
        "Set tie_word_embeddings to false in config.json to silence this."
    )
    return False, [note]


def _problems(found: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [
        f"{name}: missing, expected shape {list(expected[name])}" for name in expected if name not in found
    ]
    extra = [name for name in found if name not in expected and is_inside_model(name)]
    unused = [
        f"{name}: not part of Qwen2-VL (in {found[name].path.name})"
        for name in extra
        if not is_adapters(name)
    ]
    if adapters := [name for name in extra if is_adapters(name)]:
        unused.append(
            f"{adapters[0]} and {len(adapters) - 1} more belong to an adapter that is not merged: merge it with PEFT's "
            "merge_and_unload(), or export the base model with --adapter DIRECTORY"
        )
    wrong = [
        f"{name}: shape {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    wrong += [
        f"{name}: dtype {found[name].dtype}, expected one of {', '.join(GRAPH_DTYPES)}"
        for name in expected
        if name in found and found[name].dtype not in GRAPH_DTYPES
    ]
    return missing + unused + wrong


def _problem_list(directory: Path, problems: list[str]) -> str:
    shown = problems[:_MAX_LISTED_PROBLEMS]
    more = len(problems) - len(shown)
    lines = [
        f"{directory} does not hold the weights its config.json describes:",
        *(f"- {line}" for line in shown),
    ]
    if more:
        lines.append(f"- and {more} more")
    return "\n".join([*lines, "Download the checkpoint again, or correct config.json."])


def _weight_paths(directory: Path) -> list[Path]:
    if (directory / INDEX_FILE).exists():
        return _sharded_paths(directory)
    if (directory / SINGLE_FILE).exists():
        return [directory / SINGLE_FILE]
    if any(directory.glob("pytorch_model*.bin*")):
        raise UserError(
            f"{directory} holds pickled weights, which `qv-export export` converts: open its bundle."
        )
    if any(directory.glob("*.gguf")):
        raise UserError(
            f"{directory} holds GGUF, whose blocks are llama.cpp's own and are not read.",
            "Start from the checkpoint in safetensors, and let `qv-export export --quantize int4` make it small.",
        )
    raise UserError(
        f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}. Point at a directory with safetensors weights."
    )


def _sharded_paths(directory: Path) -> list[Path]:
    weight_map = read_json_object(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(
            f"{directory / INDEX_FILE}: expected an object weight_map of tensor names to file names."
        )
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or name in {"", ".."}]
    if outside:
        raise UserError(f"{directory / INDEX_FILE} names files outside its directory: {', '.join(outside)}.")
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing)}.",
            "Download them again.",
        )
    return [directory / name for name in names]
