"""TensorRT engines that show what they compute on the way: compiled once more, with those values as outputs.

A marked output keeps TensorRT from fusing across it, so the engine that is looked into is the one that failed with
some of its seams open: where it is right and the other wrong, a fusion is the fault.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.device_name import device_index
from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.builder import build_engine
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL
from engines.backends.tensorrt.library import TensorRtTarget, load_bindings
from engines.backends.tensorrt.options import options_of_key
from engines.backends.tensorrt.run.cuda import StreamDevice
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Execution,
    WorkingMemory,
    engine_tensors,
    upload_feeds,
)
from engines.backends.tensorrt.run.session import is_step
from engines.session import Probe, Values, cache_rows
from engines.sizing.limits import PATCHES_PER_TOKEN, Limits
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import CACHE_PARTS, GraphName, cache_name
from export.dtypes import numpy_dtype
from export.inputs import DecoderInputs, VisionInputs
from export.records.engine_record import EngineRecord

Array = npt.NDArray[Any]
Compile = Callable[[GraphName, tuple[str, ...]], ICudaEngine]
"""Gives a graph's engine with further outputs."""


@dataclass(frozen=True)
class Tools:
    """What runs engines: TensorRT's module, a GPU, and the way to a probed engine."""

    trt: Bindings
    device: StreamDevice
    compile: Compile


_MAX_SEGMENTS = 16
"""Of one prompt of the cases: pictures, and temporal steps of videos."""


def probed_limits(limits: Limits) -> Limits:
    """One row, whose prompt and pictures go in whole and whose every token is projected: so the search asks."""
    longest = limits.max_context
    segments = min(_MAX_SEGMENTS, limits.max_patches // PATCHES_PER_TOKEN)
    return replace(
        limits,
        max_segments=max(limits.max_segments, segments),
        max_batch=1,
        max_prompt_tokens=longest,
        max_logits_tokens=longest,
    )


def open_tools(
    bundle: Bundle, record: EngineRecord, target: TensorRtTarget, device_name: str | None = None
) -> Tools:
    """For an engine of a bundle, on a GPU of this machine: probed engines are built as it was."""
    from engines.backends.tensorrt.run.cuda import CudaDevice  # noqa: PLC0415 - CUDA
    from engines.backends.tensorrt.run.open import load_engine  # noqa: PLC0415

    trt, device = load_bindings(target), CudaDevice(device_index(device_name))
    options = options_of_key(target, record.sms, record.inputs)
    limits = probed_limits(Limits(**record.limits))

    def compile_probed(graph: GraphName, probes: tuple[str, ...]) -> ICudaEngine:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "probed.engine"
            build_engine(bundle, graph, limits, options, path, lambda *_: None, probes=probes)
            return load_engine(trt, path, device)

    return Tools(trt, device, compile_probed)


class TensorRtProbes:
    """A bundle's graphs on TensorRT with any of their values as further outputs: a `ProbeSession`."""

    def __init__(self, config: ModelConfig, open_tools: Callable[[], Tools]) -> None:
        """`open_tools` is called at the first look: most validations never need one."""
        self._config, self._open_tools = config, open_tools
        self._tools: Tools | None = None

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        values = _ProbedEngine(self._opened(), "vision", probes).run(0, vars(inputs))
        return {name: value.reshape(len(value), -1) for name, value in values.items()}

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        tools, decoder = self._opened(), self._config.decoder
        engine = _ProbedEngine(tools, "decoder", probes)
        caches = {
            (part, layer): engine.allocate_cache(part, layer)
            for layer in range(decoder.num_hidden_layers)
            for part in CACHE_PARTS
        }
        joined: dict[str, list[Array]] = {}
        for call in calls:
            feeds = {field.name: getattr(call, field.name) for field in fields(DecoderInputs)}
            for name, value in engine.run_cached(feeds, caches).items():
                joined.setdefault(name, []).append(value.reshape(call.token_ids.shape[1], -1))
        result = {name: np.concatenate(pieces) for name, pieces in joined.items()}
        for (part, layer), address in caches.items():
            result[cache_name("present", part, layer)] = cache_rows(engine.read_cache(part, layer, address))
        return result

    def _opened(self) -> Tools:
        self._tools = self._tools or self._open_tools()
        return self._tools


class _ProbedEngine:
    """One engine that is asked a few times: everything is allocated as it comes."""

    def __init__(self, tools: Tools, graph: GraphName, probes: Sequence[Probe]) -> None:
        self._tools = tools
        self._names = tuple(dict.fromkeys(probe.value for probe in probes))
        self._engine = tools.compile(graph, self._names)
        self._inputs, self._outputs = engine_tensors(self._engine)
        self._buffers = Buffers(tools.device)
        self._memory = WorkingMemory(tools.device)
        self._executions: dict[int, Execution] = {}

    def run(
        self,
        profile: int,
        feeds: Mapping[str, Array],
        cache_shapes: Mapping[str, tuple[int, ...]] | None = None,
        cache_addresses: Mapping[str, int] | None = None,
    ) -> Values:
        """What was asked for, in float32, by name."""
        execution = self._execution(profile)
        specs = {name: self._inputs[name] for name in feeds}
        for name, array in feeds.items():
            self._buffers.allocate(name, array.shape, specs[name].dtype)
        shapes = {**upload_feeds(self._buffers, specs, dict(feeds)), **(cache_shapes or {})}
        addresses = {**{name: self._buffers.addresses[name] for name in feeds}, **(cache_addresses or {})}
        execution.prepare(shapes, addresses)
        for name in self._outputs.keys() - addresses.keys():
            self._buffers.allocate(name, execution.output_shape(name), self._outputs[name].dtype)
            addresses[name] = self._buffers.addresses[name]
        execution.prepare(shapes, addresses)
        execution.run()
        return {name: self._read(name, execution.output_shape(name)) for name in self._names}

    def run_cached(self, feeds: Mapping[str, Array], caches: Mapping[tuple[str, int], int]) -> Values:
        """A call of the decoder on one slot's caches."""
        specs = {name: self._inputs[name] for name in feeds}
        is_decode = is_step({name: array.shape for name, array in feeds.items()}, specs)
        shapes, addresses = {}, {}
        for (part, layer), address in caches.items():
            past, present = (cache_name(time, part, layer) for time in ("past", "present"))
            shapes[past] = self._cache_shape(self._inputs[past])
            addresses[past] = addresses[present] = address
        return self.run(DECODE if is_decode else PREFILL, feeds, shapes, addresses)

    def allocate_cache(self, part: str, layer: int) -> int:
        """One slot of zeros: what attention masks still goes through its products."""
        spec = self._inputs[cache_name("past", part, layer)]
        num_bytes = int(np.prod(self._cache_shape(spec))) * numpy_dtype(spec.dtype).itemsize
        address = self._tools.device.allocate(num_bytes)
        self._tools.device.clear(address, num_bytes)
        return address

    def read_cache(self, part: str, layer: int, address: int) -> Array:
        """[1, K, L, D] float32."""
        spec = self._inputs[cache_name("past", part, layer)]
        cache = np.empty(self._cache_shape(spec), numpy_dtype(spec.dtype))
        self._tools.device.download(cache, address)
        return cache.astype(np.float32)

    def _cache_shape(self, spec: TensorFacts) -> tuple[int, ...]:
        return (1, *spec.shape[1:])

    def _execution(self, profile: int) -> Execution:
        if profile not in self._executions:
            tools = self._tools
            self._executions[profile] = Execution(
                tools.trt, self._engine, tools.device, profile, self._memory
            )
        return self._executions[profile]

    def _read(self, name: str, shape: tuple[int, ...]) -> Array:
        value = np.empty(shape, numpy_dtype(self._outputs[name].dtype))
        self._buffers.download(name, value)
        return value.astype(np.float32)
