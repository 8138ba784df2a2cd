"""TensorRT engines behind the sessions' interface, with the cache on the device and updated in place."""

import math
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL, fits
from engines.backends.tensorrt.flavour import is_rtx
from engines.backends.tensorrt.run.cuda import ALIGNMENT, Array, Device
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Execution,
    Shapes,
    WorkingMemory,
    engine_tensors,
)
from engines.backends.tensorrt.run.split import decoder_calls, vision_calls
from engines.backends.tensorrt.run.steps import MAX_STEP_CONTEXTS, StepExecutions
from engines.session import require_slots
from export.checkpoint.config import ModelConfig
from export.contract import CACHE_PARTS, cache_name
from export.dtypes import numpy_dtype
from export.errors import UserError
from export.inputs import DecoderInputs, VisionInputs

_FEED_NAMES = tuple(field.name for field in fields(DecoderInputs))


class TensorRtVision:
    """The vision engine: a `VisionSession`."""

    def __init__(self, trt: Bindings, engine: ICudaEngine, device: Device, config: ModelConfig) -> None:
        inputs, outputs = engine_tensors(engine)
        self._inputs, self._output = inputs, outputs["visual_embeds"]
        self._patches_per_token = config.vision.patches_per_token
        self._max_patches = inputs["patches"].profiles[0].maximum[0]
        self._max_segments = inputs["cu_seqlens"].profiles[0].maximum[0] - 1
        self._buffers = Buffers(device)
        for spec in inputs.values():
            self._buffers.allocate(spec.name, spec.profiles[0].maximum, spec.dtype)
        largest = (self._max_patches // self._patches_per_token, self._output.shape[1])
        self._buffers.allocate(self._output.name, largest, self._output.dtype)
        self._execution = Execution(trt, engine, device, 0, WorkingMemory(device))

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`; more patches or segments than the engine takes go through it in groups.

        Raises:
            UserError: one picture alone has more patches than that.
        """
        embeds = []
        for first, last in vision_calls(inputs.cu_seqlens, self._max_patches, self._max_segments):
            offsets = inputs.cu_seqlens[first : last + 1]
            rows = slice(offsets[0], offsets[-1])
            part = VisionInputs.of(inputs.patches[rows], inputs.positions[:, rows], offsets - offsets[0])
            embeds.append(self._run(part))
        return np.concatenate(embeds)

    def _run(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        shapes = upload_feeds(self._buffers, self._inputs, vars(inputs))
        self._execution.prepare(shapes, self._buffers.addresses)
        self._execution.run()
        num_tokens = len(inputs.patches) // self._patches_per_token
        embeds = np.empty((num_tokens, self._output.shape[1]), numpy_dtype(self._output.dtype))
        self._buffers.download(self._output.name, embeds)
        return embeds.astype(np.float32, copy=False)


class TensorRtDecoder:
    """The decoder's engine with its KV slots on the device: a `DecoderSession`.

    A slot's keys and values are bound as both past and present. Prefill and decode are two profiles, each with
    contexts of its own, so neither is set up anew when they take turns. Decode steps run as CUDA graphs.
    """

    def __init__(
        self, trt: Bindings, engine: ICudaEngine, device: Device, config: ModelConfig, num_slots: int
    ) -> None:
        inputs, outputs = engine_tensors(engine)
        largest = inputs["token_ids"].profiles[PREFILL].maximum
        if num_slots > largest[0]:
            raise UserError(
                f"{num_slots} slots asked, the decoder's engine has {largest[0]} rows. "
                f"Build with --max-batch {num_slots}, or ask for fewer slots."
            )
        self.num_slots = num_slots
        self.capacity = inputs[cache_name("past", "key", 0)].shape[2]
        self._device, self._config = device, config
        self._max_tokens = largest[1]
        self._max_logits_tokens = inputs["logits_index"].profiles[PREFILL].maximum[1]
        self._inputs = {name: inputs[name] for name in _FEED_NAMES}
        self._buffers = Buffers(device)
        for spec in self._inputs.values():
            self._buffers.allocate(spec.name, spec.profiles[PREFILL].maximum, spec.dtype)
        rows = (largest[0], self._max_logits_tokens, config.decoder.vocab_size)
        self._buffers.allocate("logits", rows, outputs["logits"].dtype)
        self._caches = self._allocate_caches(inputs)
        memory = WorkingMemory(device)
        self._prefill = Execution(trt, engine, device, PREFILL, memory)
        # Each context of RTX compiles its kernels anew, which takes seconds: one there, which takes turns.
        self._steps = StepExecutions(
            lambda: Execution(trt, engine, device, DECODE, memory), 1 if is_rtx(trt) else MAX_STEP_CONTEXTS
        )

    def _allocate_caches(self, inputs: dict[str, TensorFacts]) -> dict[tuple[str, int], tuple[int, int]]:
        """Address and bytes of one slot, of each layer's keys and values."""
        require_aligned_slots(inputs[cache_name("past", "key", 0)], self.num_slots)
        caches = {}
        for layer in range(self._config.decoder.num_hidden_layers):
            for part in CACHE_PARTS:
                spec = inputs[cache_name("past", part, layer)]
                slot_bytes = int(np.prod(spec.shape[1:])) * numpy_dtype(spec.dtype).itemsize
                address = self._device.allocate(self.num_slots * slot_bytes)
                # What attention masks still goes through its products: it must be finite.
                self._device.clear(address, self.num_slots * slot_bytes)
                caches[part, layer] = (address, slot_bytes)
        return caches

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`; what exceeds the engine's prompt tokens or logits goes through it in chunks."""
        require_slots(self, first_slot, inputs)
        pads = (self._config.image_token_id, self._config.video_token_id)
        logits = np.empty((*inputs.logits_index.shape, self._config.decoder.vocab_size), np.float32)
        for call in decoder_calls(inputs, pads, self._max_tokens, self._max_logits_tokens):
            answered = self._run(first_slot, call.inputs)
            for i, column in enumerate(call.columns):
                rows = call.is_asked[:, i]
                logits[rows, column] = answered[rows, i]
        return logits

    def _run(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        feeds = {name: getattr(inputs, name) for name in _FEED_NAMES}
        shapes = upload_feeds(self._buffers, self._inputs, feeds)
        if is_step(shapes, self._inputs):
            self._run_step(first_slot, shapes)
        else:
            self._prepare(self._prefill, first_slot, shapes)
            self._prefill.run()
        logits = np.empty((*inputs.logits_index.shape, self._config.decoder.vocab_size), np.float32)
        self._buffers.download("logits", logits)
        return logits

    def _run_step(self, first_slot: int, shapes: Shapes) -> None:
        """One token a row. Slots and rows say all of what such a call is set up for."""
        execution = self._steps.of((first_slot, shapes["token_ids"][0]))
        if not execution.is_ready():
            self._prepare(execution, first_slot, shapes)
        execution.run_repeatedly()

    def _prepare(self, execution: Execution, first_slot: int, shapes: Shapes) -> None:
        batch = shapes["token_ids"][0]
        addresses, cache_shapes = dict(self._buffers.addresses), {}
        for (part, layer), (address, slot_bytes) in self._caches.items():
            past, present = (cache_name(time, part, layer) for time in ("past", "present"))
            addresses[past] = addresses[present] = address + first_slot * slot_bytes
            heads, head_dim = self._config.decoder.num_key_value_heads, self._config.decoder.head_dim
            cache_shapes[past] = (batch, heads, self.capacity, head_dim)
        execution.prepare({**shapes, **cache_shapes}, addresses)


def require_aligned_slots(cache: TensorFacts, num_slots: int) -> None:
    """A call's rows lie side by side in the cache, so a slot begins where the one before ends.

    Args:
        cache: of one layer, [B, K, L, D].
        num_slots: that are to be opened.

    Raises:
        UserError: it would begin at an address that TensorRT does not take.
    """
    _, heads, capacity, head_dim = cache.shape
    token_bytes = heads * head_dim * numpy_dtype(cache.dtype).itemsize
    step = ALIGNMENT // math.gcd(ALIGNMENT, token_bytes)
    if num_slots > 1 and capacity % step:
        raise UserError(
            f"{num_slots} slots asked, each of {capacity} tokens of {token_bytes} bytes: the second would not begin "
            f"at a multiple of {ALIGNMENT} bytes, which TensorRT needs. "
            f"Build with --max-context {-(-capacity // step) * step}, or ask for one slot."
        )


def upload_feeds(buffers: Buffers, specs: dict[str, TensorFacts], feeds: dict[str, Array]) -> Shapes:
    """Bring a call's arrays to the device in the engine's dtypes; gives their shapes."""
    for name, array in feeds.items():
        buffers.upload(name, np.ascontiguousarray(array, numpy_dtype(specs[name].dtype)))
    return {name: array.shape for name, array in feeds.items()}


def is_step(shapes: Shapes, specs: dict[str, TensorFacts]) -> bool:
    """True if the decode profile serves a call."""
    return fits(shapes, {name: spec.profiles[DECODE] for name, spec in specs.items()})
