"""The stages of a decoder that share a GPU, and the order in which groups of rows go through several GPUs."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.profiles import PREFILL
from engines.backends.tensorrt.run.cuda import Array, StreamDevice
from engines.backends.tensorrt.run.execution import (
    Buffers,
    Shapes,
    WorkingMemory,
    engine_tensors,
    upload_feeds,
)
from engines.backends.tensorrt.run.stage import StageRunner, logits_buffer
from export.contract import BORDER_PREFIX, LOGITS, MAX_ASKED, is_cache_name
from export.dtypes import numpy_dtype


class Place:
    """Neighbouring stages on one GPU: one stream, one block of working memory, one buffer for each tensor."""

    def __init__(
        self,
        trt: Bindings,
        engines: Sequence[ICudaEngine],
        device: StreamDevice,
        num_slots: int,
        num_groups: int,
    ) -> None:
        """Args and errors as `StageRunner`, of all stages."""
        tensors = [engine_tensors(engine) for engine in engines]
        taken = {
            name: spec for inputs, _ in tensors for name, spec in inputs.items() if not is_cache_name(name)
        }
        given = {
            name: spec for _, outputs in tensors for name, spec in outputs.items() if not is_cache_name(name)
        }
        # A border between two stages of this GPU is both: it stays where it is.
        self._feeds = {name: spec for name, spec in taken.items() if name not in given}
        self._results = {name: spec for name, spec in given.items() if name not in taken}
        self._inner = {name: spec for name, spec in given.items() if name in taken}
        self._buffers = Buffers(device)
        for name, spec in taken.items():
            self._buffers.allocate(name, spec.profiles[PREFILL].maximum, spec.dtype)
        self._largest = taken["position_ids"].profiles[PREFILL].maximum[1:]  # rows and tokens
        self._asked_columns = (
            taken["logits_index"].profiles[PREFILL].maximum[1] if "logits_index" in taken else 0
        )
        for name, spec in self._results.items():
            self._buffers.allocate(
                name, self._result_shape(name, self._largest, self._asked_columns), spec.dtype
            )
        for group in range(1, num_groups if LOGITS in given else 1):
            step = (-(-self._largest[0] // num_groups), 1, given[LOGITS].shape[-1])
            self._buffers.allocate(logits_buffer(group), step, given[LOGITS].dtype)
        memory = WorkingMemory(device)
        self._stages = [
            StageRunner(trt, engine, device, self._buffers, memory, num_slots, num_groups)
            for engine in engines
        ]
        self._asked: Shapes = {}
        self._asked_buffers: dict[str, str] = {}

    def keep_compiled(self) -> None:
        """See `Engine.keep_compiled`."""
        for stage in self._stages:
            stage.keep_compiled()

    def _result_shape(self, name: str, rows_and_tokens: Sequence[int], num_columns: int) -> tuple[int, ...]:
        """[B, S, C] of a border; [B, Q, ...] of what is said of asked tokens."""
        rows, tokens = rows_and_tokens
        columns = tokens if name.startswith(BORDER_PREFIX) else num_columns
        # TensorRT does not work out that the asked ids keep their number.
        last = [MAX_ASKED if dim < 0 else dim for dim in self._results[name].shape[2:]]
        return (rows, columns, *last)

    def start(self, first_slot: int, values: Mapping[str, Array], *, is_step: bool, group: int = 0) -> None:
        """Put a call on the stream, and do not wait for it.

        Args:
            first_slot: of the first row.
            values: what the stages take, by name; others are ignored.
            is_step: see `StageRunner.run`.
            group: see `StageRunner.run`.
        """
        feeds = {name: values[name] for name in self._feeds}
        shapes = dict(upload_feeds(self._buffers, self._feeds, feeds))
        rows = shapes["position_ids"][1:]
        shapes |= {name: (*rows, spec.shape[-1]) for name, spec in self._inner.items()}
        for stage in self._stages:
            stage.run(first_slot, shapes, is_step=is_step, group=group)
        num_columns = shapes["logits_index"][1] if "logits_index" in shapes else 0
        self._asked = {name: self._result_shape(name, rows, num_columns) for name in self._results}
        self._asked_buffers = {LOGITS: logits_buffer(group)}

    def finish(self, wanted: Collection[str]) -> dict[str, Array]:
        """Wait for the call that was started last; gives by name what the next place takes, and what is wanted."""
        arrays = {
            name: np.empty(shape, numpy_dtype(self._results[name].dtype))
            for name, shape in self._asked.items()
            if name.startswith(BORDER_PREFIX) or name in wanted
        }
        for name, array in arrays.items():
            self._buffers.download(self._asked_buffers.get(name, name), array)
        return arrays

    def logits_of(self, group: int, row: int, num_columns: int) -> Array:
        """Logits [Q, vocab] of one row of a group, from the call that was finished last."""
        spec = self._results[LOGITS]
        logits = np.empty((num_columns, spec.shape[-1]), numpy_dtype(spec.dtype))
        self._buffers.download(logits_buffer(group), logits, row * logits.nbytes)
        return logits


def waves(num_groups: int, num_places: int) -> Iterator[list[tuple[int, int]]]:
    """Which group is where, moment by moment: each goes through the places in order, one behind the other."""
    for moment in range(num_groups + num_places - 1):
        yield [(group, moment - group) for group in range(num_groups) if 0 <= moment - group < num_places]


def devices_of_stages(num_stages: int, num_devices: int) -> list[int]:
    """Which device each stage goes to: neighbours together, as many devices as can be used."""
    used = min(num_stages, num_devices)
    return [stage * used // num_stages for stage in range(num_stages)]
