"""A bundle's graphs on a device, with any of their values as further outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from engines.backends.onnxruntime.session import split_rows
from engines.backends.onnxruntime_cuda.device import Device, Memory, Mover, allocated
from engines.backends.onnxruntime_cuda.open_graph import OpenGraph, open_graph
from engines.backends.onnxruntime_cuda.rows import EmbeddingRows
from engines.backends.onnxruntime_cuda.session import zeros
from engines.session import Probe, Values, cache_rows
from export.bundle import Bundle
from export.contract import CACHE_PARTS, cache_name
from export.dtypes import onnx_dtype
from export.inputs import DecoderInputs, VisionInputs


class DeviceProbes:
    """See `ProbeSession`: for looking, not for speed."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self._bundle, self._device, self._mover = bundle, device, Mover(device)

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        names = [probe.value for probe in probes]
        graph = open_graph(self._bundle, "vision", self._device, outputs=names)
        binding = graph.session.io_binding()
        for name, array in vars(inputs).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        values = self._values(graph, binding, names)
        return {name: value.reshape(len(value), -1) for name, value in values.items()}

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        config, names = self._bundle.config, [probe.value for probe in probes]
        decoder = config.decoder
        graph = open_graph(self._bundle, "decoder", self._device, outputs=names)
        element_type = onnx_dtype(graph.dtype)
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls) + 1
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        caches = {
            (part, layer): zeros(self._device, self._mover, shape, element_type)
            for layer in range(decoder.num_hidden_layers)
            for part in CACHE_PARTS
        }
        joined: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        for call in calls:
            (alone,) = split_rows(call, (config.image_token_id, config.video_token_id))
            binding = graph.session.io_binding()
            kept = self._bind(binding, alone, element_type)
            for (part, layer), cache in caches.items():
                self._device.bind(binding, cache_name("past", part, layer), cache)
                self._device.bind(binding, cache_name("present", part, layer), cache, is_output=True)
            for name, value in self._values(graph, binding, names).items():
                joined[name].append(value.reshape(alone.token_ids.shape[1], -1))
            del kept
        result = {name: np.concatenate(pieces) for name, pieces in joined.items()}
        for (part, layer), cache in caches.items():
            rows = Memory(cache.value, element_type, (1, int(np.prod(shape))))
            array = self._mover.to_host("cache", rows).reshape(shape)
            result[cache_name("present", part, layer)] = cache_rows(array)
        return result

    def _bind(self, binding: ort.IOBinding, call: DecoderInputs, element_type: int) -> Memory:
        """Inputs of a call; what must live until it has run."""
        for name, array in {**vars(call), "asked_ids": np.zeros((1, 1), np.int64)}.items():
            if name != "visual_embeds":
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        embeds = call.visual_embeds
        if len(embeds):
            memory = EmbeddingRows.of_host(self._device, self._mover, embeds, element_type).memory
        else:
            memory = allocated(self._device, (0, embeds.shape[1]), element_type)
        self._device.bind(binding, "visual_embeds", memory)
        return memory

    def _values(self, graph: OpenGraph, binding: ort.IOBinding, names: Sequence[str]) -> Values:
        """Run, and bring the named values over as float32."""
        for name in names:
            binding.bind_output(name, self._device.kind, self._device.index)
        graph.session.run_with_iobinding(binding)
        found = binding.get_outputs()[-len(names) :] if names else []
        return {name: self._to_host(value) for name, value in zip(names, found, strict=True)}

    def _to_host(self, value: ort.OrtValue) -> npt.NDArray[np.float32]:
        element_type, shape = value.element_type(), tuple(value.shape())
        if element_type == TensorProto.FLOAT:
            array: npt.NDArray[np.float32] = value.numpy()
            return array
        flat = Memory(value, element_type, (1, int(np.prod(shape))))
        return self._mover.to_host("probes", flat).reshape(shape)
