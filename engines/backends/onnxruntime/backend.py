"""ONNX Runtime on the CPU: opens a bundle's graphs as they are; what `build` keeps of it is a record of limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.backends.base import GraphProgress, Options
from engines.backends.ceilings import Ceiling
from engines.backends.facts import EngineFacts
from engines.backends.known_issues import KnownIssue, Situation
from engines.gpus import GpuFacts
from engines.machine import Machine
from engines.packages import first_installed_version, has_module
from engines.sizing.costs import ModelCosts, model_costs
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.errors import UserError
from export.install import package_command
from export.models.configuration import KvCachePrecision
from export.records.engine_record import EngineRecord

if TYPE_CHECKING:
    from engines.parallel.communicator import Communicator
    from engines.session import Engine, ProbeSession, RankSessions, VisionSession

_VALUE_BYTES = 4  # computes in float32 on a CPU
_BASE_BYTES = 400_000_000  # of a process that opens a graph, beside its weights


class OnnxRuntimeBackend:
    """See `Backend`."""

    name = "onnxruntime"
    distributions: tuple[str, ...] = ("onnxruntime", "onnxruntime-gpu")
    sources: tuple[str, ...] = ("engines/backends/onnxruntime", "plugins")
    needs_engine = False
    device: Literal["cpu", "gpu"] = "cpu"
    rounds_inputs_of_few_bits = True
    triton_platform = None
    option_names: frozenset[str] = frozenset()
    dtype_reason = "ONNX Runtime on a CPU has no products of half types"

    def kv_cache_problem(self, precision: KvCachePrecision) -> str | None:
        """See `Backend`."""
        del precision
        return None

    def version(self) -> str | None:
        """See `Backend`."""
        return first_installed_version(self.distributions) if has_module("onnxruntime") else None

    def missing(self) -> str | None:
        """See `Backend`."""
        if self.version() is not None:
            return None
        return (
            f"Target {self.name} needs the Python module onnxruntime, which is not installed. "
            f"Install it: {package_command('onnxruntime')}"
        )

    def architectures(self, asked: Sequence[int], gpus: Callable[[], Sequence[GpuFacts]]) -> tuple[int, ...]:
        """See `Backend`."""
        del gpus
        if asked:
            raise UserError("--sm is for TensorRT: ONNX Runtime compiles when it loads.", "Leave it out.")
        return ()

    def serves(self, sm: int) -> bool:
        """See `Backend`. It computes on the CPU, whatever the GPU."""
        del sm
        return True

    def advice(self, gpus: Sequence[GpuFacts]) -> str:
        """See `Backend`."""
        del gpus
        return self.missing() or "on the CPU"

    def check_options(self, architectures: tuple[int, ...], options: Options) -> None:
        """See `Backend`: it has none."""
        del architectures
        if options:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise UserError(f"{named} is for TensorRT: ONNX Runtime compiles when it loads.", "Leave it out.")

    def key_options(self, architectures: tuple[int, ...], options: Options) -> Mapping[str, str]:
        """See `Backend`: it has none."""
        del architectures, options
        return {}

    def compute_dtypes(self, graph_dtype: str) -> tuple[str, ...]:
        """See `Backend`."""
        del graph_dtype
        return ("float32",)

    def costs(self, config: ModelConfig, graph_dtype: str, limits: Limits) -> ModelCosts:
        """See `Backend`. Nothing is written; opening takes the weights in float32."""
        del graph_dtype
        return model_costs(
            config, limits, _VALUE_BYTES, lambda _graph, weights_bytes: (0, weights_bytes + _BASE_BYTES)
        )

    def build(
        self,
        bundle: Bundle,
        graph: GraphName,
        limits: Limits,
        architectures: tuple[int, ...],
        options: Options,
        output: Path,
        progress: GraphProgress,
        *,
        outputs: tuple[str, ...] = (),
    ) -> EngineFacts:
        """See `Backend`. Opens the graph, to prove that it opens."""
        del architectures, options, output, progress, outputs
        from engines.backends.onnxruntime.facts import graph_facts  # noqa: PLC0415 - ONNX Runtime

        return graph_facts(bundle, graph, limits)

    def load_problems(self, record: EngineRecord, machine: Machine) -> list[str]:
        """See `Backend`."""
        del record, machine
        missing = self.missing()
        return [missing] if missing else []

    def rebuild_arguments(self, record: EngineRecord, machine: Machine) -> list[str]:
        """See `Backend`."""
        del record, machine
        return []

    def known_issues(self, situation: Situation) -> list[KnownIssue]:
        """See `Backend`."""
        del situation
        return []

    def open(
        self,
        bundle: Bundle,
        record: EngineRecord | None,
        *,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        device: str | None = None,
    ) -> Engine:
        """See `Backend`. A record's limits are what it was planned for; the graphs themselves have none."""
        del record
        if device is not None:
            raise UserError(f"--device {device} is for GPUs: {self.name} computes on the CPU. Leave it out.")
        from engines.backends.onnxruntime.session import open_sessions  # noqa: PLC0415 - ONNX Runtime

        return open_sessions(bundle, num_slots=num_slots, capacity=capacity, num_threads=num_threads)

    def open_rank(
        self,
        bundle: Bundle,
        record: EngineRecord | None,
        stage: int | None,
        *,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        device: str | None = None,
        communicator: Communicator | None = None,
    ) -> RankSessions:
        """See `Backend`."""
        del record, device
        from engines.backends.onnxruntime.session import open_rank  # noqa: PLC0415 - ONNX Runtime

        return open_rank(
            bundle,
            stage,
            num_slots=num_slots,
            capacity=capacity,
            num_threads=num_threads,
            communicator=communicator,
        )

    def open_vision(
        self, bundle: Bundle, record: EngineRecord | None, *, num_threads: int | None = None
    ) -> VisionSession:
        """See `Backend`."""
        del record
        from engines.backends.onnxruntime.session import OnnxRuntimeVision  # noqa: PLC0415 - ONNX Runtime

        return OnnxRuntimeVision(bundle, num_threads)

    def ceilings(self, graph_dtype: str, num_threads: int | None = None) -> tuple[Ceiling, ...]:
        """See `Backend`. In float32, which is what it computes in whatever the graphs' dtype."""
        del graph_dtype
        from engines.backends.onnxruntime.ceilings import measure_ceilings  # noqa: PLC0415 - ONNX Runtime

        return measure_ceilings(num_threads)

    def probe(
        self, bundle: Bundle, record: EngineRecord | None, *, device: str | None = None
    ) -> ProbeSession | None:
        """See `Backend`."""
        del record, device
        from engines.backends.onnxruntime.probes import OnnxRuntimeProbes  # noqa: PLC0415 - ONNX Runtime

        return OnnxRuntimeProbes(bundle)
