"""A bundle's graphs on a device: the cache is updated in place, embeddings and logits stay where they are made."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from engines.backends.onnxruntime.session import split_rows
from engines.backends.onnxruntime_cuda.device import (
    Device,
    Memory,
    Mover,
    allocated,
)
from engines.backends.onnxruntime_cuda.open_graph import OpenGraph, open_graph
from engines.backends.onnxruntime_cuda.rows import EmbeddingRows
from engines.session import Candidates, Engine, require_slots
from export.bundle import Bundle
from export.contract import (
    CACHE_PARTS,
    NUM_CANDIDATES,
    cache_name,
    candidates_contract,
    decoder_contract,
)
from export.dtypes import onnx_dtype
from export.errors import UserError
from export.inputs import DecoderInputs, Embeds, VisionInputs


def open_sessions(
    bundle: Bundle, device: Device, *, num_slots: int, capacity: int, num_threads: int | None = None
) -> Engine:
    """Open both graphs of a bundle on a device. Args and errors as `open_graph`; `capacity` is each slot's tokens."""
    if bundle.manifest.tensor_parallel > 1:
        raise UserError(
            f"{bundle.directory}: target onnxruntime-cuda runs a decoder that is one graph; this one is divided "
            f"among {bundle.manifest.tensor_parallel} ranks. Export the checkpoint without --tensor-parallel, "
            "or use another target."
        )
    if len(bundle.stages) > 1:
        raise UserError(
            f"{bundle.directory}: target onnxruntime-cuda runs a decoder that is one graph; this one is cut into "
            f"{len(bundle.stages)} stages. Export the checkpoint without --pipeline-stages, or use another target."
        )
    mover = Mover(device)
    vision = DeviceVision(open_graph(bundle, "vision", device, num_threads), device, mover)
    decoder = open_graph(bundle, "decoder", device, num_threads, wants_graphs=True)
    return Engine(vision, DeviceDecoder(bundle, decoder, device, mover, num_slots, capacity))


class DeviceVision:
    """The vision graph: a `VisionSession` that can leave its embeddings on the device."""

    def __init__(self, graph: OpenGraph, device: Device, mover: Mover) -> None:
        self._graph, self._device, self._mover = graph, device, mover

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`."""
        return self.encode_on_device(inputs).to_host()

    def encode_on_device(self, inputs: VisionInputs) -> EmbeddingRows:
        """As `encode`; the rows stay on the device."""
        binding = self._graph.session.io_binding()
        for name, array in vars(inputs).items():
            self._device.uploaded[name] += array.nbytes
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("visual_embeds", self._device.kind, self._device.index)
        self._graph.session.run_with_iobinding(binding)
        (value,) = binding.get_outputs()
        memory = Memory(value, onnx_dtype(self._graph.dtype), tuple(value.shape()))
        return EmbeddingRows(self._device, self._mover, memory)


@dataclass(frozen=True, eq=False)
class _Call:
    """Memory that is bound to a graph for calls of one kind."""

    binding: ort.IOBinding
    inputs: dict[str, Memory]
    outputs: dict[str, Memory]
    options: ort.RunOptions


class DeviceDecoder:
    """The decoder with its KV slots: a `CandidateDecoder`.

    A slot's keys and values are bound as both past and present. A decode step over the same slots runs in memory of its
    own, at the same addresses each time, so that it can be replayed as a CUDA graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: OpenGraph,
        device: Device,
        mover: Mover,
        num_slots: int,
        capacity: int,
    ) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self._graph, self._device, self._mover, self._config = graph, device, mover, bundle.config
        self._element_type = onnx_dtype(graph.dtype)
        contract, more = decoder_contract(bundle.config, graph.dtype), candidates_contract(bundle.config)
        specs = [contract.input(field.name) for field in fields(DecoderInputs)] + list(more.inputs)
        self._input_types = {spec.name: onnx_dtype(spec.dtype) for spec in specs}
        self._output_types = {spec.name: onnx_dtype(spec.dtype) for spec in more.outputs}
        decoder = bundle.config.decoder
        shape = (num_slots, decoder.num_key_value_heads, capacity, decoder.head_dim)
        # What attention masks still goes through its products: it must be finite.
        self._caches = {
            (part, layer): zeros(device, mover, shape, self._element_type)
            for layer in range(decoder.num_hidden_layers)
            for part in CACHE_PARTS
        }
        self._steps: dict[tuple[int, int, int], _Call] = {}

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`."""
        nothing_asked = np.full((len(inputs.token_ids), 1), -1, np.int64)
        answers = self._answers(first_slot, inputs, nothing_asked)
        logits = [self._mover.to_host("logits", _flat(answer["logits"])) for answer in answers]
        return np.concatenate(logits).reshape(*inputs.logits_index.shape, -1)

    def candidates(
        self, first_slot: int, inputs: DecoderInputs, asked_ids: npt.NDArray[np.int64]
    ) -> Candidates:
        """See `CandidateDecoder.candidates`."""
        answers = self._answers(first_slot, inputs, asked_ids)
        found: dict[str, Any] = {
            name: np.concatenate([self._device.download(name, answer[name].value) for answer in answers])
            for name in self._output_types
        }
        rows = [(answer["logits"], row) for answer in answers for row in range(answer["logits"].shape[0])]

        def whole(row: int) -> npt.NDArray[np.float32]:
            logits, at = rows[row]
            return self._mover.to_host("whole_logits", _flat(logits.rows(at, at + 1))).reshape(
                logits.shape[1:]
            )

        return Candidates(**found, whole=whole)

    def _answers(
        self, first_slot: int, inputs: DecoderInputs, asked_ids: npt.NDArray[np.int64]
    ) -> list[dict[str, Memory]]:
        """Outputs of the calls that an asked one is cut into, row after row.

        The attention takes one row at a time where rows have several tokens (`cached_attention.onnxruntime_cuda`).
        """
        require_slots(self, first_slot, inputs)
        if inputs.token_ids.shape[1] == 1:
            return [self._run(first_slot, inputs, asked_ids, is_step=True)]
        pads = (self._config.image_token_id, self._config.video_token_id)
        return [
            self._run(first_slot + row, alone, asked_ids[row : row + 1], is_step=False)
            for row, alone in enumerate(split_rows(inputs, pads))
        ]

    def _run(
        self, first_slot: int, inputs: DecoderInputs, asked_ids: npt.NDArray[np.int64], *, is_step: bool
    ) -> dict[str, Memory]:
        feeds = {**vars(inputs), "asked_ids": asked_ids}
        embeds: Embeds = feeds.pop("visual_embeds")
        # A step takes no images, so that all of its shapes are those of its slots.
        if is_step and not len(embeds):
            key = (first_slot, len(inputs.token_ids), asked_ids.shape[1])
            if key not in self._steps:
                self._steps[key] = self._call(first_slot, feeds, len(self._steps) + 1)
            call = self._steps[key]
        else:
            call = self._call(first_slot, feeds, -1)
        for name, array in feeds.items():
            self._device.upload(name, array, call.inputs[name].value)
        rows = self._rows(embeds)
        if rows is not None:
            self._device.bind(call.binding, "visual_embeds", rows.memory)
        self._graph.session.run_with_iobinding(call.binding, call.options)
        return call.outputs

    def _call(self, first_slot: int, feeds: dict[str, npt.NDArray[Any]], graph_number: int) -> _Call:
        """Memory for a call of these shapes, bound with the cache of its slots."""
        batch, num_asked = feeds["asked_ids"].shape
        num_rows, decoder = feeds["logits_index"].shape[1], self._config.decoder
        num_candidates = min(NUM_CANDIDATES, decoder.vocab_size)
        shapes = {
            "logits": (batch, num_rows, decoder.vocab_size),
            "top_logits": (batch, num_rows, num_candidates),
            "top_ids": (batch, num_rows, num_candidates),
            "log_sum_exp": (batch, num_rows),
            "asked_logits": (batch, num_rows, num_asked),
        }
        types = {"logits": int(TensorProto.FLOAT), **self._output_types}
        call = _Call(
            self._graph.session.io_binding(),
            {
                name: allocated(self._device, array.shape, self._input_types[name])
                for name, array in feeds.items()
            },
            {name: allocated(self._device, shape, types[name]) for name, shape in shapes.items()},
            _run_options(graph_number, has_graphs=self._graph.has_graphs),
        )
        for name, memory in call.inputs.items():
            self._device.bind(call.binding, name, memory)
        none = allocated(self._device, (0, decoder.hidden_size), self._element_type)
        self._device.bind(call.binding, "visual_embeds", none)
        call.inputs["visual_embeds"] = none  # kept alive
        for name, memory in call.outputs.items():
            self._device.bind(call.binding, name, memory, is_output=True)
        for (part, layer), cache in self._caches.items():
            rows = cache.rows(first_slot, first_slot + batch)
            self._device.bind(call.binding, cache_name("past", part, layer), rows)
            self._device.bind(call.binding, cache_name("present", part, layer), rows, is_output=True)
        return call

    def _rows(self, embeds: Embeds) -> EmbeddingRows | None:
        if not len(embeds):
            return None
        if isinstance(embeds, EmbeddingRows):
            return embeds
        host = cast("npt.NDArray[np.float32]", embeds)
        return EmbeddingRows.of_host(self._device, self._mover, host, self._element_type)


def _run_options(graph_number: int, *, has_graphs: bool) -> ort.RunOptions:
    """Which CUDA graph a call is; below 0: none."""
    options = ort.RunOptions()
    if has_graphs:
        options.add_run_config_entry("gpu_graph_id", str(graph_number))
    return options


def _flat(logits: Memory) -> Memory:
    """[B, Q, vocab] as [B, Q * vocab]."""
    batch, *others = logits.shape
    return Memory(logits.value, logits.element_type, (batch, int(np.prod(others))), logits.offset_bytes)


def zeros(device: Device, mover: Mover, shape: Sequence[int], element_type: int) -> Memory:
    """New memory of zeros, row by row, since they go through the host's float32."""
    rows = allocated(device, (1, int(np.prod(shape[1:]))), int(TensorProto.FLOAT))
    rows.value.update_inplace(np.zeros(rows.shape, np.float32))
    memory = mover.joined([rows] * shape[0], element_type)
    return Memory(memory.value, element_type, tuple(shape))
