"""A bundle's graphs on ONNX Runtime on the CPU, with the cache updated in place."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from engines.backends.graph_interface import require_interface
from engines.backends.onnxruntime.collective import allow_collectives, number_of, raise_error
from engines.backends.onnxruntime.graph import load_graph, raised_weights
from engines.backends.onnxruntime.quantized import has_codes, keep_from_packing
from engines.parallel.communicator import Alone, Communicator
from engines.parallel.ranks import RanksInThreads, require_group
from engines.runtime.row_groups import row_groups
from engines.session import (
    CallPlan,
    DecoderSession,
    Engine,
    RankSessions,
    RefusedGraphError,
    require_slots,
)
from export.bundle import Bundle
from export.contract import DecoderStage, GraphName, TensorSpec, is_cache_name, present_of
from export.inputs import DecoderInputs, VisionInputs

_ERROR_AND_ABOVE = 3

_FEWEST_ROWS = 2
"""Of a group: one row alone goes through another algorithm than several, which sums in another order."""

# ONNX Runtime's accuracy levels of `MatMulNBits`. Against products of the same weights in float32: 4e-7 and 1.2e-2.
_FLOAT32_INPUTS, _ROUNDED_INPUTS = "1", "4"


def open_sessions(
    bundle: Bundle,
    *,
    num_slots: int = 1,
    capacity: int,
    num_threads: int | None = None,
) -> Engine:
    """Open a bundle's graphs. The ranks of a divided decoder are threads, which share the cores.

    Args:
        bundle: whose graphs are opened.
        num_slots: KV slots, each with room for `capacity` tokens.
        num_threads: threads of each graph; None takes every core this process may use. They wait for each other in
            every operator, so where cores are shared with other processes fewer are faster.

    Raises:
        RefusedGraphError: ONNX Runtime refuses a graph.
    """
    return Engine(
        OnnxRuntimeVision(bundle, num_threads), open_decoder(bundle, num_slots, capacity, num_threads)
    )


def open_decoder(
    bundle: Bundle,
    num_slots: int,
    capacity: int,
    num_threads: int | None = None,
    *,
    rounds_inputs: bool = True,
) -> DecoderSession:
    """Open the decoder's graphs; see `open_sessions`, and `create_session` for `rounds_inputs`."""
    num_ranks = bundle.manifest.tensor_parallel
    if num_ranks == 1:
        return OnnxRuntimeDecoder(bundle, num_slots, capacity, num_threads, rounds_inputs=rounds_inputs)
    threads = max(1, (num_threads or len(os.sched_getaffinity(0))) // num_ranks)
    return RanksInThreads(
        num_ranks,
        lambda end: OnnxRuntimeDecoder(
            bundle, num_slots, capacity, threads, rounds_inputs=rounds_inputs, communicator=end
        ),
    )


def open_rank(
    bundle: Bundle,
    stage: int | None,
    *,
    num_slots: int,
    capacity: int,
    num_threads: int | None = None,
    communicator: Communicator | None = None,
) -> RankSessions:
    """Open what one rank holds; see `Backend.open_rank`."""
    vision = OnnxRuntimeVision(bundle, num_threads)
    if stage is None:
        return RankSessions(vision, None)
    end = communicator or Alone()
    require_group(bundle, end)
    part = bundle.rank_stages[end.rank][stage]
    return RankSessions(
        vision,
        OnnxRuntimeStage(bundle, part, num_slots, capacity, num_threads, communicator=communicator),
    )


class OnnxRuntimeVision:
    """The vision graph on CPU: a `VisionSession`."""

    def __init__(self, bundle: Bundle, num_threads: int | None = None, *, rounds_inputs: bool = True) -> None:
        """Args: rounds_inputs: see `create_session`."""
        self._session, self._weights = create_session(
            bundle, "vision", num_threads, may_pack=True, rounds_inputs=rounds_inputs
        )

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`."""
        visual_embeds: npt.NDArray[np.float32] = self._session.run(["visual_embeds"], vars(inputs))[0]
        return visual_embeds


class OnnxRuntimeDecoder:
    """The decoder's graphs on CPU with their KV slots: a `DecoderSession`."""

    def __init__(
        self,
        bundle: Bundle,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        *,
        rounds_inputs: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        """Args: rounds_inputs: see `create_session`. communicator: of the rank that this is, where there are several.

        Raises:
            UserError: the communicator's group has another size than the bundle says.
        """
        self.num_slots = num_slots
        self.capacity = capacity
        end = communicator or Alone()
        require_group(bundle, end)
        self._stages = [
            OnnxRuntimeStage(
                bundle,
                stage,
                num_slots,
                capacity,
                num_threads,
                rounds_inputs=rounds_inputs,
                communicator=communicator,
            )
            for stage in bundle.rank_stages[end.rank]
        ]

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`."""
        require_slots(self, first_slot, inputs)
        plan = self._stages[0].plan(inputs)
        return plan.join([self._run(first_slot + row, call) for row, call in plan.calls])

    def _run(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        values: dict[str, npt.NDArray[Any]] = {name: getattr(inputs, name) for name in _FEED_NAMES}
        for stage in self._stages:
            values.update(stage.run(first_slot, values))
        return values["logits"]


class OnnxRuntimeStage:
    """A decoder's graph on CPU, the whole decoder or a stage of it, with the KV slots of its layers: a `StageSession`.

    A slot's keys and values are bound as both past and present, so a step writes its own tokens and moves nothing.
    """

    def __init__(
        self,
        bundle: Bundle,
        stage: DecoderStage,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        *,
        rounds_inputs: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self._visual_token_ids = (bundle.config.image_token_id, bundle.config.video_token_id)
        self._communicator = communicator  # the graph has but its number
        self._number = 0 if communicator is None else number_of(communicator)
        self._session, self._weights = create_session(
            bundle,
            stage.graph,
            num_threads,
            may_pack=False,
            rounds_inputs=rounds_inputs,
            communicator=self._number,
        )
        contract = bundle.contract(stage.graph, "float32")
        self._caches = {
            spec.name: new_cache(spec, num_slots, capacity)
            for spec in contract.inputs
            if is_cache_name(spec.name)
        }
        self._inputs = [spec for spec in contract.inputs if not is_cache_name(spec.name)]
        self._outputs = [spec for spec in contract.outputs if not is_cache_name(spec.name)]
        self._calls: dict[tuple[int, int], _BoundCall] = {}

    def plan(self, inputs: DecoderInputs, num_groups: int = 1) -> CallPlan:
        """See `StageSession`."""
        num_tokens = inputs.token_ids.shape[1]
        if num_tokens > 1 and (inputs.write_index.any() or inputs.kv_lengths.max() < num_tokens):
            return CallPlan(list(enumerate(split_rows(inputs, self._visual_token_ids))), _joined)
        may_divide = num_tokens == 1 and not len(inputs.visual_embeds)
        groups = row_groups(inputs, num_groups if may_divide else 1, fewest_rows=_FEWEST_ROWS)
        return CallPlan(list(groups), _joined)

    def run(
        self, first_slot: int, values: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """See `StageSession`."""
        call = self._call(first_slot, len(values["write_index"]))
        sizes: dict[Any, int] = {}
        for spec in self._inputs:
            array = values[spec.name]
            sizes |= dict(zip(spec.shape, array.shape, strict=True))
            call.set_input(spec.name, array)
        outputs = {}
        for spec in self._outputs:
            shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
            outputs[spec.name] = np.empty(shape, np.float32)
            _bind_output(call.binding, spec.name, outputs[spec.name])
        self._session.run_with_iobinding(call.binding)
        raise_error(self._number)
        return outputs

    def _call(self, first_slot: int, batch: int) -> "_BoundCall":
        key = (first_slot, batch)
        if key not in self._calls:
            call = _BoundCall(self._session.io_binding())
            for past, cache in self._caches.items():
                rows = cache[first_slot : first_slot + batch]
                _bind_input(call.binding, past, rows)
                _bind_output(call.binding, present_of(past), rows)
            self._calls[key] = call
        return self._calls[key]


def new_cache(spec: TensorSpec, num_slots: int, capacity: int) -> npt.NDArray[Any]:
    """A tensor of an empty cache; 8-bit floats are bytes here (`engines.backends.onnxruntime.graph`).

    Untouched pages of a fresh array cost no memory: a large capacity is paid for when it is used.
    """
    sizes = {"B": num_slots, "L": capacity}
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    return np.zeros(shape, np.uint8 if spec.dtype == "float8_e4m3fn" else spec.dtype)


class _BoundCall:
    """Inputs bound to memory of their own, so that a step of the same shapes only copies values in."""

    def __init__(self, binding: ort.IOBinding) -> None:
        self.binding = binding
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def set_input(self, name: str, values: npt.NDArray[Any]) -> None:
        array = self._arrays.get(name)
        if array is None or array.shape != values.shape or array.dtype != values.dtype:
            array = self._arrays[name] = np.empty(values.shape, values.dtype)
            _bind_input(self.binding, name, array)
        np.copyto(array, values)


def _joined(logits: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return logits[0] if len(logits) == 1 else np.concatenate(logits)


_FEED_NAMES = tuple(field.name for field in fields(DecoderInputs))


def split_rows(inputs: DecoderInputs, visual_token_ids: tuple[int, int]) -> Iterator[DecoderInputs]:
    """Each row of a batch alone, without its padding and with its own visual embeddings.

    ONNX Runtime's cached attention takes one row at a time when several tokens follow a non-empty cache, and finds
    where to write from the number of tokens, so padding must go (`plugins.cached_attention.onnx_functions`).
    What was asked for a padding token, which means nothing, is answered by the row's last valid one.
    """
    lengths = inputs.kv_lengths - inputs.write_index
    num_visual = np.isin(inputs.token_ids, visual_token_ids).sum(axis=1)
    ends = num_visual.cumsum()
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        yield DecoderInputs(
            token_ids=inputs.token_ids[one, :length],
            visual_embeds=inputs.visual_embeds[ends[row] - num_visual[row] : ends[row]],
            position_ids=inputs.position_ids[:, one, :length],
            write_index=inputs.write_index[one],
            kv_lengths=inputs.kv_lengths[one],
            logits_index=np.minimum(inputs.logits_index[one], length - 1),
        )


def _bind_input(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def create_session(
    bundle: Bundle,
    name: GraphName,
    num_threads: int | None,
    *,
    may_pack: bool,
    rounds_inputs: bool = True,
    outputs: Sequence[str] = (),
    profile: Path | None = None,
    communicator: int = 0,
) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session, and the weights that it shares with us: they must live as long as it does.

    Args:
        bundle: whose graph is opened.
        name: which.
        num_threads: see `open_sessions`.
        may_pack: let ONNX Runtime lay weights out for its products, instead of using them where they lie. Many rows at
            once gain from it; a decode step, bound by memory, gains nothing and would
            wait for every weight to be copied first.
        rounds_inputs: let products with 4-bit weights round their inputs to 8 bits in blocks, which is what makes them
            fast; without, they give what the weights mean to float32's precision.
        outputs: values to give as well, those of them that are inside this graph.
        profile: how the names of files begin in which it writes down what ran; None: it does not.
        communicator: of a rank's graph, the number of what its collectives speak through; 0: it is opened, but not run.

    Raises:
        UserError: the graph is not the one that its name and the configuration say.
        RefusedGraphError: ONNX Runtime refuses it.
    """
    graph = bundle.graph(name)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or len(os.sched_getaffinity(0))
    options.log_severity_level = _ERROR_AND_ABOVE
    # Every prompt and picture has its own shapes. A plan of memory would be kept for each of them, and an arena as
    # large as the largest call ever needed; without both a call costs the same and gives its memory back.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent)
    )
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    level = _ROUNDED_INPUTS if rounds_inputs else _FLOAT32_INPUTS
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if bundle.manifest.tensor_parallel > 1 and name != "vision":
        allow_collectives(options)
    model = load_graph(graph, bundle.rank_config, communicator)
    require_interface(model, bundle.contract(name), graph)
    inside = {name for node in model.graph.node for name in node.output}
    inside -= {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name in inside
    )
    weights, raised = [], set[str]()
    for weight, array in raised_weights(model, graph.parent):
        weights.append(ort.OrtValue.ortvalue_from_numpy(array))
        # Shared without a copy; add_external_initializers would hold every weight twice.
        options.add_initializer(weight, weights[-1])
        raised.add(weight)
    # A packed copy replaces a weight of the mapped file, but would stand beside one that is shared with us. Products
    # with quantized weights have no kernel for weights that are not packed.
    if has_codes(model):
        keep_from_packing(model, raised)
    elif weights or not may_pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedGraphError(
            f"ONNX Runtime {ort.__version__} refuses {graph}: {error}. The bundle is not what this qv-export writes.",
            "Export the checkpoint again.",
        ) from error
    return session, weights
