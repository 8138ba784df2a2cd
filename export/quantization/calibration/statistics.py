"""What every product of a model is given while it reads conversations: the reference, one block in memory at a time.

The pieces that a graph is traced from (`Family.pieces`) run here with values, in float32. What one piece leaves for the
next stands in files, one a conversation: memory holds one block's weights, its statistics and one conversation.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor, nn

from export.checkpoint.tensors import Checkpoint
from export.contract import GraphName
from export.errors import UserError
from export.files.atomic import name_whole_file
from export.inputs import ModelInputs, VisionInputs
from export.models.families import family_of
from export.models.pieces import Copy, Piece

Values = dict[str, Tensor]
"""By the names of the recipe."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of a product's inputs x [T, K], T tokens of all conversations."""

    second_moments: npt.NDArray[np.float32]
    """[K, K]: the sum of x^T x."""
    largest: float
    """Of all |x|."""


class _Step(NamedTuple):
    """One block, and the constants that it may read."""

    piece: Piece
    copy: Copy
    tables: Mapping[str, Tensor]

    def name_of(self, name: str) -> str:
        """Of an input or output of the piece among all values."""
        return self.copy.names.get(name, name)

    @property
    def reads(self) -> set[str]:
        """Names of values, without the cache: that of every conversation is empty."""
        names = {self.name_of(item.name) for item in self.piece.inputs}
        return {name for name in names if not name.startswith("past_")}

    def holds(self, name: str) -> bool:
        return bool(self.copy.module) and name.startswith(f"{self.copy.module}.")


def input_statistics(
    source: Checkpoint,
    conversations: Iterable[ModelInputs],
    wanted: Collection[str],
    scratch: Path,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, InputStatistics]]:
    """Run the conversations through the reference, and give what each wanted product saw, block by block.

    Args:
        source: the checkpoint; its weights are read block by block.
        conversations: as tensors; each is taken once.
        wanted: published names of the weights of products, of blocks. One that no conversation reaches is not given: a
            product of the vision encoder where none has a picture.
        scratch: where the files of intermediate values stand meanwhile.
        progress: told which block is looked at.
    """
    steps = _steps(source, wanted)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".calibration-") as name:
        calls: list[Path] = []
        for inputs in conversations:
            calls.append(Path(name, f"{len(calls)}.pt"))
            _keep(calls[-1], _values(inputs, source.config.vision.hidden_size))
        for index, step in enumerate(steps):
            progress(step.copy.scope)
            needed = set[str]().union(*(later.reads for later in steps[index + 1 :]))
            yield from _through(step, source, calls, wanted, needed)


def _steps(source: Checkpoint, wanted: Collection[str]) -> list[_Step]:
    """Blocks of both graphs in the order of their run, up to the last that has a wanted product."""
    family = family_of(source.config.model_type)
    graphs: tuple[GraphName, ...] = ("vision", "decoder")
    recipes = [family.pieces(graph, source.config, "float32") for graph in graphs]
    steps = [
        _Step(piece, copy, recipe.tables)
        for recipe in recipes
        for piece in recipe.pieces
        for copy in piece.copies
    ]
    while steps and not any(map(steps[-1].holds, wanted)):
        steps.pop()
    return steps


def _values(inputs: ModelInputs, hidden_size: int) -> Values:
    """Both graphs' inputs, batch 1; without a picture those of the decoder alone."""
    vision = VisionInputs.of(inputs.patches, inputs.positions, inputs.cu_seqlens)
    no_picture = {"visual_embeds": np.zeros((0, hidden_size), np.float32)}
    arrays: dict[str, npt.NDArray[Any]] = {
        **(vars(vision) if len(inputs.patches) else no_picture),
        "token_ids": inputs.token_ids[None],
        "position_ids": inputs.position_ids[:, None],
        "write_index": np.zeros(1, np.int64),
        "kv_lengths": np.array([len(inputs.token_ids)]),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _keep(path: Path, values: Values) -> None:
    """Write them, in the place of those that are read from there at this moment."""
    scratch = path.with_suffix(".new")
    torch.save(values, scratch)
    name_whole_file(scratch, path)


@torch.inference_mode()
def _through(
    step: _Step, source: Checkpoint, calls: Sequence[Path], wanted: Collection[str], needed: set[str]
) -> list[tuple[str, InputStatistics]]:
    module = _loaded(step, source)
    watched = _Watched(step, module, wanted)
    for path in calls:
        values = {**torch.load(path, weights_only=True, mmap=True), **step.tables}
        # A block of the vision encoder finds nothing to read in a conversation without pictures.
        if step.reads <= values.keys():
            values |= _outputs(step, module, values)
            _keep(path, {name: values[name] for name in values.keys() & needed - step.tables.keys()})
    return watched.statistics()


def _loaded(step: _Step, source: Checkpoint) -> nn.Module:
    """The block with its weights in float32; of the whole model's the tables, as they lie in the file."""
    with torch.device("meta"):
        module = step.piece.build()
    scope = f"{step.copy.module}." if step.copy.module else ""
    names = {name: f"{scope}{name}" for name, _ in module.named_parameters()}
    if not scope:  # what is not called for stays without values: a head that is tied has none of its own
        tables = {name: _weight(source, name) for name in names if name in source.tensors}
        module.load_state_dict(tables, strict=False, assign=True)
    else:
        tensors = {name: _weight(source, full).float() for name, full in names.items()}
        module.load_state_dict(tensors, assign=True)
    return module.eval()


def _weight(source: Checkpoint, name: str) -> Tensor:
    if name not in source.tensors:
        stored = source.packed.get(name) or source.linears[name]
        return torch.from_numpy(stored.read().dequantized())
    tensor = source.tensors[name]
    with safe_open(tensor.path, framework="pt") as file:
        weight: Tensor = file.get_tensor(tensor.name)
    return weight


def _outputs(step: _Step, module: nn.Module, values: Values) -> Values:
    inputs = []
    for item in step.piece.inputs:
        if (name := step.name_of(item.name)) in values:
            inputs.append(values[name])
        else:  # a cache, of as many tokens as the conversation has
            sizes = {"B": 1, "L": int(values["kv_lengths"])}
            shape = [size if isinstance(size, int) else sizes[size] for size in item.shape]
            inputs.append(torch.zeros(shape, dtype=item.dtype))
    made = getattr(module, step.piece.method)(*inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    return {step.name_of(name): output for name, output in zip(step.piece.outputs, outputs, strict=True)}


class _Watched:
    """Statistics of the wanted products of a block: products that read one tensor share them."""

    def __init__(self, step: _Step, module: nn.Module, wanted: Collection[str]) -> None:
        self._moments: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}
        self._first_of: dict[str, str] = {}
        self._last: tuple[Tensor, str] | None = None
        for path, part in module.named_modules():
            name = f"{step.copy.module}.{path}.weight"
            if name in wanted:
                part.register_forward_pre_hook(partial(self._see, name))

    def _see(self, name: str, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        if self._last is not None and self._last[0] is inputs[0]:
            self._first_of[name] = self._last[1]
            return
        self._last, self._first_of[name] = (inputs[0], name), name
        x = inputs[0].flatten(0, -2)
        moments = x.T @ x
        self._moments[name] = self._moments[name].add_(moments) if name in self._moments else moments
        self._largest[name] = max(self._largest.get(name, 0.0), float(x.abs().max()))

    def statistics(self) -> list[tuple[str, InputStatistics]]:
        found = {
            name: InputStatistics(moments.numpy(), self._largest[name])
            for name, moments in self._moments.items()
        }
        return [(name, found[first]) for name, first in self._first_of.items()]


class StatisticsInOrder:
    """What products saw, asked for in the order of their blocks: memory holds those of one."""

    def __init__(self, statistics: Iterator[tuple[str, InputStatistics]]) -> None:
        self._coming = statistics
        self._here: dict[str, InputStatistics] = {}

    def of(self, name: str) -> InputStatistics:
        """What a product saw; it is given once.

        Raises:
            UserError: no conversation reached it, or what it saw are no numbers to calculate with.
        """
        while name not in self._here:
            coming = next(self._coming, None)
            if coming is None:
                raise UserError(
                    f"{name.removesuffix('.weight')} cannot be calibrated: no conversation of --calibrate reaches it.",
                    "Give pictures, or leave --quantize-vision out.",
                )
            self._here[coming[0]] = coming[1]
        seen = self._here.pop(name)
        if not np.isfinite(seen.second_moments).all():
            raise UserError(
                f"{name.removesuffix('.weight')} cannot be calibrated: its inputs overflow float32.",
                "Check the checkpoint's weights, or leave --calibrate out.",
            )
        return seen
