"""TensorRT engines behind the sessions' interface, with the cache on the device and updated in place."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL, fits
from engines.backends.tensorrt.run.cuda import Array, StreamDevice
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Execution,
    Shapes,
    WorkingMemory,
    engine_tensors,
    upload_feeds,
)
from engines.backends.tensorrt.run.place import Place, waves
from engines.backends.tensorrt.run.split import DecoderCall, decoder_calls, joined_columns, vision_calls
from engines.runtime.row_groups import row_groups
from engines.session import Candidates, require_slots
from export.checkpoint.config import ModelConfig
from export.contract import LOGITS, MAX_ASKED, cache_name
from export.dtypes import numpy_dtype
from export.errors import UserError
from export.inputs import DecoderInputs, VisionInputs

_FEED_NAMES = tuple(field.name for field in fields(DecoderInputs))
_CANDIDATES = ("top_logits", "top_ids", "log_sum_exp", "asked_logits")


class TensorRtVision:
    """The vision engine: a `VisionSession`."""

    def __init__(self, trt: Bindings, engine: ICudaEngine, device: StreamDevice, config: ModelConfig) -> None:
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

    def keep_compiled(self) -> None:
        """See `Engine.keep_compiled`."""
        self._execution.keep_compiled()

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
        devices: Sequence[StreamDevice],
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
        self._group_starts = [0]  # the first row of each group of the call that was run last
        self._places = [Place(trt, stages, device, num_slots, len(by_device)) for device, stages in by_device]

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`; what exceeds the engine's prompt tokens or logits goes through it in chunks."""
        require_slots(self, first_slot, inputs)
        return self._answers(first_slot, inputs, _nothing_asked(inputs), self._calls(inputs), (LOGITS,))[
            LOGITS
        ]

    def keep_compiled(self) -> None:
        """See `Engine.keep_compiled`."""
        for place in self._places:
            place.keep_compiled()

    def _calls(self, inputs: DecoderInputs) -> list[DecoderCall]:
        pads = (self._config.image_token_id, self._config.video_token_id)
        return list(decoder_calls(inputs, pads, self._max_tokens, self._max_logits_tokens))

    def _answers(
        self,
        first_slot: int,
        inputs: DecoderInputs,
        asked_ids: npt.NDArray[np.int64],
        calls: Sequence[DecoderCall],
        wanted: Sequence[str],
    ) -> dict[str, Array]:
        """Outputs [B, Q, ...] by name, each column from the call that answers it."""
        found = [self._run(first_slot, call.inputs, asked_ids, wanted) for call in calls]
        num_columns = inputs.logits_index.shape[1]
        return {
            name: joined_columns(calls, [answers[name] for answers in found], num_columns) for name in wanted
        }

    def _run(
        self,
        first_slot: int,
        inputs: DecoderInputs,
        asked_ids: npt.NDArray[np.int64],
        wanted: Sequence[str],
    ) -> dict[str, Array]:
        step = is_step({name: getattr(inputs, name).shape for name in _FEED_NAMES}, self._feeds)
        groups = list(row_groups(inputs, len(self._places) if step else 1))
        self._group_starts = [start for start, _ in groups]
        values: list[dict[str, Array]] = [
            {
                **{name: getattr(part, name) for name in _FEED_NAMES},
                "asked_ids": asked_ids[start : start + len(part.token_ids)],
            }
            for start, part in groups
        ]
        for wave in waves(len(groups), len(self._places)):
            for group, place in wave:  # what is put on different GPUs runs at the same time
                slot = first_slot + self._group_starts[group]
                self._places[place].start(slot, values[group], is_step=step, group=group)
            for group, place in wave:
                values[group] |= self._places[place].finish(wanted)
        if len(values) == 1:
            return {name: values[0][name] for name in wanted}
        return {name: np.concatenate([given[name] for given in values]) for name in wanted}


class TensorRtCandidateDecoder(TensorRtDecoder):
    """A decoder whose engine gives candidates: a `CandidateDecoder`. Logits stay on the device until asked for."""

    def candidates(
        self, first_slot: int, inputs: DecoderInputs, asked_ids: npt.NDArray[np.int64]
    ) -> Candidates:
        """See `CandidateDecoder.candidates`; what exceeds the engine's prompt tokens goes through it in chunks.

        Of several chunks only the last one's logits are still on the device, so theirs are brought over at once.
        """
        require_slots(self, first_slot, inputs)
        num_asked = asked_ids.shape[1]
        assert num_asked <= MAX_ASKED, num_asked
        ids = _nothing_asked(inputs)
        np.maximum(asked_ids, 0, out=ids[:, :num_asked])  # below 0 nothing is asked, and nobody looks
        calls = self._calls(inputs)
        kept = (LOGITS,) if len(calls) > 1 else ()
        answers = self._answers(first_slot, inputs, ids, calls, (*_CANDIDATES, *kept))
        starts, num_columns = self._group_starts, inputs.logits_index.shape[1]

        def whole(row: int) -> npt.NDArray[np.float32]:
            if kept:
                logits: npt.NDArray[np.float32] = answers[LOGITS][row]
                return logits
            group = bisect_right(starts, row) - 1
            return self._places[-1].logits_of(group, row - starts[group], num_columns)

        return Candidates(
            top_logits=answers["top_logits"],
            top_ids=answers["top_ids"],
            log_sum_exp=answers["log_sum_exp"],
            asked_logits=answers["asked_logits"][..., :num_asked],
            whole=whole,
        )


def open_decoder_engine(
    trt: Bindings,
    engines: Sequence[ICudaEngine],
    devices: Sequence[StreamDevice],
    config: ModelConfig,
    num_slots: int,
) -> TensorRtDecoder:
    """The session of engines as they were built, with candidates or without. Args and errors as `TensorRtDecoder`."""
    _, outputs = engine_tensors(engines[-1])
    kind = TensorRtCandidateDecoder if set(_CANDIDATES) <= outputs.keys() else TensorRtDecoder
    return kind(trt, engines, devices, config, num_slots)


def _nothing_asked(inputs: DecoderInputs) -> npt.NDArray[np.int64]:
    """Ids [B, 64] for an engine that must be given some."""
    return np.zeros((len(inputs.token_ids), MAX_ASKED), np.int64)


def is_step(shapes: Shapes, specs: dict[str, TensorFacts]) -> bool:
    """True if the decode profile serves a call."""
    return fits(shapes, {name: spec.profiles[DECODE] for name, spec in specs.items()})
