"""What is used of NVIDIA's Python API, as protocols.

Protocols under NVIDIA's own names, for the bindings ship no types: mypy holds our code and the tests' fake runtime to
them, and a test holds them to the real bindings of TensorRT 11 and TensorRT-RTX, names, keywords and number of
arguments. So a name that exists in neither, or in one target only, is found without a GPU.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Named(Protocol):
    """A member of an enumeration."""

    @property
    def name(self) -> str: ...


# --- building ---


class ITensor(Protocol):
    name: str

    @property
    def dtype(self) -> Named: ...
    @property
    def shape(self) -> Sequence[int]: ...


class ILayer(Protocol):
    name: str
    metadata: str

    @property
    def type(self) -> Named: ...
    @property
    def num_outputs(self) -> int: ...
    def get_output(self, index: int) -> ITensor: ...


class INetworkDefinition(Protocol):
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...
    def get_layer(self, index: int) -> ILayer: ...


class ParserError(Protocol):
    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def local_function_stack(self) -> Sequence[str]: ...


class OnnxParser(Protocol):
    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def load_model_proto(self, model: bytes) -> bool: ...
    def load_initializer(self, name: str, data: int, size: int) -> bool: ...
    def parse_model_proto(self) -> bool: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...  # noqa: A002
    def get_shape(self, input: str) -> Sequence[Sequence[int]]: ...  # noqa: A002


class ITimingCache(Protocol):
    def serialize(self) -> bytes: ...


class IBuilderConfig(Protocol):
    progress_monitor: Any
    profiling_verbosity: Any
    builder_optimization_level: int
    hardware_compatibility_level: Any

    def set_flag(self, flag: Any) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache: ...


class RtxBuilderConfig(IBuilderConfig, Protocol):
    """What `IBuilderConfig` has in TensorRT-RTX alone."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network_to_stream(
        self, network: INetworkDefinition, config: IBuilderConfig, writer: Any
    ) -> bool: ...


# --- running ---


class IExecutionContext(Protocol):
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, memory: int, size: int) -> None: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class RtxExecutionContext(IExecutionContext, Protocol):
    """What `IExecutionContext` has in TensorRT-RTX alone."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class ICudaEngine(Protocol):
    weight_streaming_budget_v2: int

    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    @property
    def streamable_weights_size(self) -> int: ...
    def get_weight_streaming_automatic_budget(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Named: ...
    def get_tensor_dtype(self, name: str) -> Named: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def get_aliased_input_tensor(self, name: str) -> str | None: ...
    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...
    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...


class IRuntimeCache(Protocol):
    """Of TensorRT-RTX alone."""

    def deserialize(self, blob: bytes) -> bool: ...
    def serialize(self) -> bytes: ...


class IRuntimeConfig(Protocol):
    """What TensorRT-RTX has of it: TensorRT's own has no cache."""

    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...


class RtxEngine(ICudaEngine, Protocol):
    """What `ICudaEngine` has in TensorRT-RTX alone; it makes contexts from a configuration too."""

    def create_runtime_config(self) -> IRuntimeConfig: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None: ...


# --- enumerations and classes to derive from ---


class BuilderFlag(Protocol):
    WEIGHT_STREAMING: Any


class ProfilingVerbosity(Protocol):
    DETAILED: Any


class HardwareCompatibilityLevel(Protocol):
    NONE: Any
    SAME_COMPUTE_CAPABILITY: Any
    AMPERE_PLUS: Any


class ExecutionContextAllocationStrategy(Protocol):
    USER_MANAGED: Any


class TensorIOMode(Protocol):
    INPUT: Any
    OUTPUT: Any


class Severity(Protocol):
    """`ILogger.Severity`."""

    INTERNAL_ERROR: Any
    ERROR: Any
    WARNING: Any
    INFO: Any
    VERBOSE: Any


class ILogger(Protocol):
    def log(self, severity: Any, msg: str) -> None: ...


class IProgressMonitor(Protocol):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...
    def phase_finish(self, phase_name: str) -> None: ...


class IStreamWriter(Protocol):
    def write(self, data: bytes) -> int: ...


class Bindings(Protocol):
    """The module itself, `tensorrt` or `tensorrt_rtx`."""

    __name__: str
    __version__: str
    BuilderFlag: BuilderFlag
    ProfilingVerbosity: ProfilingVerbosity
    HardwareCompatibilityLevel: HardwareCompatibilityLevel
    ExecutionContextAllocationStrategy: ExecutionContextAllocationStrategy
    ILogger: Any
    IProgressMonitor: Any
    IStreamWriter: Any

    def Builder(self, logger: ILogger) -> Builder: ...  # noqa: N802
    def OnnxParser(self, network: INetworkDefinition, logger: ILogger) -> OnnxParser: ...  # noqa: N802
    def Runtime(self, logger: ILogger) -> Runtime: ...  # noqa: N802


class RtxBindings(Bindings, Protocol):
    """What the module of TensorRT-RTX has beside."""

    ComputeCapability: Any


COMMON: Mapping[type, str] = {
    kind: kind.__name__
    for kind in (
        ITensor,
        ILayer,
        INetworkDefinition,
        ParserError,
        OnnxParser,
        IOptimizationProfile,
        ITimingCache,
        IBuilderConfig,
        Builder,
        IExecutionContext,
        ICudaEngine,
        Runtime,
        BuilderFlag,
        ProfilingVerbosity,
        HardwareCompatibilityLevel,
        ExecutionContextAllocationStrategy,
        TensorIOMode,
        ILogger,
        IProgressMonitor,
        IStreamWriter,
    )
} | {Severity: "ILogger.Severity", Bindings: ""}
"""Protocols, and where in the module each one's original is. Both targets have all of it."""

RTX_ONLY: Mapping[type, str] = {
    RtxBuilderConfig: "IBuilderConfig",
    RtxExecutionContext: "IExecutionContext",
    RtxEngine: "ICudaEngine",
    IRuntimeConfig: "IRuntimeConfig",
    IRuntimeCache: "IRuntimeCache",
    RtxBindings: "",
}
