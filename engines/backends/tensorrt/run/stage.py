"""One engine of the decoder: the whole of it, or one stage, with the KV slots of its layers on the device."""

import math

import numpy as np

from engines.backends.facts import TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import DECODE, PREFILL
from engines.backends.tensorrt.library import is_rtx
from engines.backends.tensorrt.run.cuda import ALIGNMENT, StreamDevice
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Execution,
    Shapes,
    WorkingMemory,
    engine_tensors,
)
from engines.backends.tensorrt.run.steps import MAX_STEP_CONTEXTS, StepExecutions
from export.contract import LOGITS, PAST, is_cache_name, present_of
from export.dtypes import numpy_dtype
from export.errors import UserError


class StageRunner:
    """Runs one engine on what lies in shared buffers.

    A slot's keys and values are bound as both past and present. Prefill and decode are two profiles, each with
    contexts of its own, so neither is set up anew when they take turns. Decode steps run as CUDA graphs.
    """

    def __init__(
        self,
        trt: Bindings,
        engine: ICudaEngine,
        device: StreamDevice,
        buffers: Buffers,
        memory: WorkingMemory,
        num_slots: int,
        num_groups: int = 1,
    ) -> None:
        """Args:
            trt: the library.
            engine: loaded.
            device: it runs on.
            buffers: hold every tensor of the engine but its caches.
            memory: what its contexts compute in, which other engines of the same stream may share.
            num_slots: KV slots.
            num_groups: of rows that take turns in every step.

        Raises:
            UserError: slots that do not begin where TensorRT wants them to.
            EngineError: TensorRT cannot make a context, or the device has no room.
        """
        inputs, outputs = engine_tensors(engine)
        self._device, self._buffers = device, buffers
        self._pasts = {name: spec for name, spec in inputs.items() if is_cache_name(name, PAST)}
        self._names = [name for name in (*inputs, *outputs) if not is_cache_name(name)]
        self._gives_logits = LOGITS in outputs
        self._input_names = [name for name in inputs if name not in self._pasts]
        self._caches = self._allocate_caches(num_slots)
        self._prefill = Execution(trt, engine, device, PREFILL, memory)
        # Each context of RTX compiles its kernels anew, which takes seconds: one a group there, which takes turns.
        self._steps = StepExecutions(
            lambda: Execution(trt, engine, device, DECODE, memory),
            num_groups if is_rtx(trt) else MAX_STEP_CONTEXTS,
        )

    def _allocate_caches(self, num_slots: int) -> dict[str, tuple[int, int]]:
        """Address and bytes of one slot, of each layer's keys and values, by the name of the past."""
        require_aligned_slots(next(iter(self._pasts.values())), num_slots)
        caches = {}
        for name, spec in self._pasts.items():
            slot_bytes = int(np.prod(spec.shape[1:])) * numpy_dtype(spec.dtype).itemsize
            address = self._device.allocate(num_slots * slot_bytes)
            # What attention masks still goes through its products: it must be finite.
            self._device.clear(address, num_slots * slot_bytes)
            caches[name] = (address, slot_bytes)
        return caches

    def run(self, first_slot: int, shapes: Shapes, *, is_step: bool, group: int = 0) -> None:
        """Put one call on the stream.

        Args:
            first_slot: of the first row.
            shapes: of what the buffers hold, by name; those of other engines are ignored.
            is_step: whether the decode profile serves it: slots, rows and group then say all that it is set up for.
            group: which of a step's groups of rows it is, whose logits go to a buffer of their own.
        """
        if not is_step:
            self._prepare(self._prefill, first_slot, shapes, group)
            self._prefill.run()
            return
        execution = self._steps.of((first_slot, _num_rows(shapes), group))
        if not execution.is_ready():
            self._prepare(execution, first_slot, shapes, group)
        execution.run_repeatedly()

    def keep_compiled(self) -> None:
        """See `Engine.keep_compiled`."""
        self._prefill.keep_compiled()  # which all contexts of the engine share

    def _prepare(self, execution: Execution, first_slot: int, shapes: Shapes, group: int) -> None:
        addresses = {name: self._buffers.addresses[name] for name in self._names}
        if self._gives_logits:
            addresses[LOGITS] = self._buffers.addresses[logits_buffer(group)]
        sizes = {name: shapes[name] for name in self._input_names}
        for past, (address, slot_bytes) in self._caches.items():
            addresses[past] = addresses[present_of(past)] = address + first_slot * slot_bytes
            sizes[past] = (_num_rows(shapes), *self._pasts[past].shape[1:])
        execution.prepare(sizes, addresses)


def logits_buffer(group: int) -> str:
    """Name of the buffer that takes the logits of a group: they stay there until the next call."""
    return LOGITS if group == 0 else f"{LOGITS} of group {group}"


def _num_rows(shapes: Shapes) -> int:
    return shapes["write_index"][0]


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
            f"at a multiple of {ALIGNMENT} bytes, which TensorRT needs.",
            f"Build with --max-context {-(-capacity // step) * step}, or ask for one slot.",
        )
