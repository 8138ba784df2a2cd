"""TensorRT engines behind the sessions' interface, with the cache on the device and updated in place."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL, fits
from engines.backends.tensorrt.run.cuda import Array, Device
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Execution,
    Shapes,
    WorkingMemory,
    engine_tensors,
    upload_feeds,
)
from engines.backends.tensorrt.run.place import Place, row_groups, waves
from engines.backends.tensorrt.run.split import decoder_calls, vision_calls
from engines.session import require_slots
from export.checkpoint.config import ModelConfig
from export.contract import cache_name
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
    """The decoder's engines with their KV slots on GPUs: a `DecoderSession`.

    One engine on one GPU; or those of a decoder's stages, neighbours on one GPU or on several. Where several GPUs hold
    it, the rows of a step go through them in groups, so that each GPU works while the others do.
    """

    def __init__(
        self,
        trt: Bindings,
        engines: Sequence[ICudaEngine],
        devices: Sequence[Device],
        config: ModelConfig,
        num_slots: int,
    ) -> None:
        """Args:
            trt: the library.
            engines: of the stages, in order.
            devices: of each stage; the same object for those that share a GPU.
            config: the model's.
            num_slots: KV slots.

        Raises:
            UserError: more slots than the engines have rows, or slots that TensorRT cannot address.
            EngineError: a device has no room, or TensorRT refuses something.
        """
        inputs = {name: spec for engine in engines for name, spec in engine_tensors(engine)[0].items()}
        largest = inputs["token_ids"].profiles[PREFILL].maximum
        if num_slots > largest[0]:
            raise UserError(
                f"{num_slots} slots asked, the decoder's engine has {largest[0]} rows.",
                f"Build with --max-batch {num_slots}, or ask for fewer slots.",
            )
        self.num_slots = num_slots
        self.capacity = inputs[cache_name("past", "key", 0)].shape[2]
        self._config = config
        self._max_tokens = largest[1]
        self._max_logits_tokens = inputs["logits_index"].profiles[PREFILL].maximum[1]
        self._feeds = {name: inputs[name] for name in _FEED_NAMES}
        by_device = [
            (device, [engine for engine, _ in pairs])
            for device, pairs in groupby(zip(engines, devices, strict=True), key=itemgetter(1))
        ]
        self._places = [Place(trt, stages, device, num_slots, len(by_device)) for device, stages in by_device]

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
        step = is_step({name: getattr(inputs, name).shape for name in _FEED_NAMES}, self._feeds)
        groups = list(row_groups(inputs, len(self._places) if step else 1))
        values: list[dict[str, Array]] = [
            {name: getattr(group, name) for name in _FEED_NAMES} for _, group in groups
        ]
        for wave in waves(len(groups), len(self._places)):
            for group, place in wave:  # what is put on different GPUs runs at the same time
                self._places[place].start(first_slot + groups[group][0], values[group], is_step=step)
            for group, place in wave:
                values[group] |= self._places[place].finish()
        return np.concatenate([given["logits"] for given in values])


def is_step(shapes: Shapes, specs: dict[str, TensorFacts]) -> bool:
    """True if the decode profile serves a call."""
    return fits(shapes, {name: spec.profiles[DECODE] for name, spec in specs.items()})
