"""What one of several processes holds on its GPU: the vision engine, and the engine of one stage of the decoder."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import DECODE, fits
from engines.backends.tensorrt.run.cuda import Array, StreamDevice
from engines.backends.tensorrt.run.execution import engine_tensors
from engines.backends.tensorrt.run.place import Place
from engines.backends.tensorrt.run.split import decoder_calls, joined_columns
from engines.runtime.row_groups import row_groups
from engines.session import CallPlan
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import LOGITS, MAX_ASKED, PAST, is_cache_name
from export.errors import UserError
from export.inputs import DecoderInputs


class TensorRtStage:
    """One stage's engine with the KV slots of its layers: a `StageSession`.

    Args:
        trt: the library.
        engine: of the stage.
        device: it runs on.
        config: the model's.
        limits: that all stages were built for.
        num_slots: KV slots.
        num_groups: of rows that take turns in every step.

    Raises:
        UserError: more slots than the engine has rows, or slots that TensorRT cannot address.
        EngineError: the device has no room, or TensorRT refuses something.
    """

    def __init__(
        self,
        trt: Bindings,
        engine: ICudaEngine,
        device: StreamDevice,
        config: ModelConfig,
        limits: Limits,
        num_slots: int,
        num_groups: int,
    ) -> None:
        inputs, _ = engine_tensors(engine)
        if num_slots > limits.max_batch:
            raise UserError(
                f"{num_slots} slots asked, the decoder's engine has {limits.max_batch} rows.",
                f"Build with --max-batch {num_slots}, or ask for fewer slots.",
            )
        self.num_slots = num_slots
        self.capacity = next(spec.shape[2] for name, spec in inputs.items() if is_cache_name(name, PAST))
        self._visual_token_ids = (config.image_token_id, config.video_token_id)
        self._limits = limits
        self._feeds = {
            name: spec for name, spec in inputs.items() if not is_cache_name(name) and name != "asked_ids"
        }
        self._place = Place(trt, [engine], device, num_slots, num_groups)

    def plan(self, inputs: DecoderInputs, num_groups: int) -> CallPlan:
        """See `StageSession`."""
        if inputs.token_ids.shape[1] == 1 and not len(inputs.visual_embeds):
            return CallPlan(list(row_groups(inputs, num_groups)), np.concatenate)
        calls = list(
            decoder_calls(
                inputs, self._visual_token_ids, self._limits.prompt_tokens, self._limits.max_logits_tokens
            )
        )

        def joined(logits: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
            return joined_columns(calls, logits, inputs.logits_index.shape[1])

        return CallPlan([(0, call.inputs) for call in calls], joined)

    def run(self, first_slot: int, values: Mapping[str, Array]) -> dict[str, Array]:
        """See `StageSession`."""
        profile = {name: spec.profiles[DECODE] for name, spec in self._feeds.items()}
        is_step = fits({name: values[name].shape for name in self._feeds}, profile)
        # Candidates are nobody's here: the whole logits go to the leader.
        asked_ids = np.zeros((len(values["write_index"]), MAX_ASKED), np.int64)
        self._place.start(first_slot, {**values, "asked_ids": asked_ids}, is_step=is_step)
        return self._place.finish((LOGITS,))
