"""TensorRT and TensorRT-RTX as backends: one Python API, two libraries that never share a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.version import Version

from engines.backends.base import GraphProgress, Options
from engines.backends.ceilings import Ceiling
from engines.backends.facts import EngineFacts
from engines.backends.known_issues import KnownIssue, Situation, matching
from engines.backends.tensorrt.costs import engine_costs
from engines.backends.tensorrt.known_issues import RTX_ISSUES, TENSORRT_ISSUES
from engines.backends.tensorrt.library import (
    MIN_DRIVER_BRANCH,
    MIN_TENSORRT_VERSION,
    MODULES,
    RTX_ARCHITECTURES,
    TENSORRT_LEAST_ARCHITECTURE,
    TENSORRT_TARGETS,
    TensorRtTarget,
    installed_library,
    remedy,
    require_installed,
    serves_architecture,
)
from engines.backends.tensorrt.options import BuildOptions
from engines.gpus import GpuFacts
from engines.machine import Machine, driver_branch
from engines.sizing.costs import ModelCosts
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.errors import UserError
from export.models.configuration import KvCachePrecision
from export.records.engine_record import EngineRecord

if TYPE_CHECKING:
    from engines.parallel.communicator import Communicator
    from engines.session import Engine, ProbeSession, RankSessions, VisionSession

DEFAULT_RTX_SMS = (80, 86, 89, 120)
"""Without `--sm` and without a GPU here. A further architecture costs next to nothing: it adds kernels, no weights."""


class TensorRtBackend:
    """See `Backend`. Of one target: the other is another row of the registry."""

    needs_engine = True
    device: Literal["cpu", "gpu"] = "gpu"
    option_names = frozenset(
        {
            "timing_cache",
            "weight_streaming",
            "hardware_compatibility",
            "optimization_level",
            "cached_attention",
            "only_logits",
        }
    )
    sources = ("engines/backends/tensorrt", "plugins")
    rounds_inputs_of_few_bits = False
    dtype_reason = "its engines compute in the graphs' dtype; export the bundle anew"

    def __init__(self, name: TensorRtTarget) -> None:
        self.name: TensorRtTarget = name
        self._is_rtx = name == "tensorrt-rtx"
        self.distributions = (
            ("tensorrt-rtx-cu13-libs", "tensorrt-rtx") if self._is_rtx else ("tensorrt-cu13", "tensorrt")
        )
        self.triton_platform = None if self._is_rtx else "tensorrt"

    def version(self) -> str | None:
        """See `Backend`."""
        return installed_library(self.name, self.distributions)

    def missing(self) -> str | None:
        """See `Backend`."""
        others = [name for name in TENSORRT_TARGETS if name != self.name and TensorRtBackend(name).version()]
        hint = "".join(f"\n{name} is installed: --target {name} builds with that." for name in others)
        try:
            require_installed(self.name)
        except UserError as error:
            return f"{error}{hint}"
        if self.version() is None:
            return (
                f"Target {self.name} needs version {MIN_TENSORRT_VERSION} or newer, which is not installed. "
                f"Install it: {remedy(self.name)}{hint}"
            )
        return None

    def architectures(self, asked: Sequence[int], gpus: Callable[[], Sequence[GpuFacts]]) -> tuple[int, ...]:
        """See `Backend`. RTX: those asked for, of this machine's GPUs, or the usual ones. TensorRT: this machine's."""
        wanted = tuple(sorted(set(asked)))
        if self._is_rtx and wanted:
            return wanted
        served = tuple(sorted({gpu.sm for gpu in gpus() if self.serves(gpu.sm)}))
        if self._is_rtx:
            return served or DEFAULT_RTX_SMS
        if not served:
            raise UserError(
                "--target tensorrt builds on an NVIDIA GPU of SM80 or newer, which `nvidia-smi` does not list here.",
                "Build where the GPU is, or use --target tensorrt-rtx, which builds on any CPU.",
            )
        if wanted and wanted != served[:1]:
            raise UserError(
                f"--target tensorrt builds for the GPU that it runs on: found SM{served[0]} here, asked was "
                f"{', '.join(f'SM{sm}' for sm in wanted)}.",
                "Leave --sm out, or build on such a machine.",
            )
        return served[:1]

    def serves(self, sm: int) -> bool:
        """See `Backend`."""
        return sm in RTX_ARCHITECTURES if self._is_rtx else sm >= TENSORRT_LEAST_ARCHITECTURE

    def advice(self, gpus: Sequence[GpuFacts]) -> str:
        """See `Backend`."""
        runs = any(self.serves(gpu.sm) for gpu in gpus)
        if self._is_rtx:
            if self.version() is None:
                return f"builds on any CPU: {remedy(self.name)}"
            return (
                "" if runs else "builds for any of its GPUs here; runs on NVIDIA GPUs SM75 to SM89 and SM120"
            )
        if self.version() is not None and runs:
            return ""
        return f"needs an NVIDIA GPU (SM80 and up) and TensorRT {MIN_TENSORRT_VERSION} or newer: {remedy(self.name)}"

    def kv_cache_problem(self, precision: KvCachePrecision) -> str | None:
        """See `Backend`. Seen with TensorRT-RTX 1.7, whose parser TensorRT shares."""
        del precision
        return "its layer that updates a cache takes float32, float16 and bfloat16 alone"

    def check_options(self, architectures: tuple[int, ...], options: Options) -> None:
        """See `Backend`."""
        self._options(architectures, options)

    def key_options(self, architectures: tuple[int, ...], options: Options) -> Mapping[str, str]:
        """See `Backend`.

        A timing cache is left out: it spares TensorRT its measurements, which differ from one build to the next
        without one.
        """
        values = asdict(self._options(architectures, options))
        if self._is_rtx:  # which has but one
            del values["cached_attention"]
        return {name: str(values[name]) for name in values.keys() - {"target", "sm", "timing_cache"}}

    def compute_dtypes(self, graph_dtype: str) -> tuple[str, ...]:
        """See `Backend`."""
        return (graph_dtype,)

    def costs(self, config: ModelConfig, graph_dtype: str, limits: Limits) -> ModelCosts:
        """See `Backend`."""
        return engine_costs(config, graph_dtype, limits)

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
        """See `Backend`. In a process of its own."""
        from engines.backends.tensorrt.build.builder import build_engine  # noqa: PLC0415 - heavy

        chosen = self._options(architectures, options)
        return build_engine(bundle, graph, limits, chosen, output, progress, probes=outputs)

    def load_problems(self, record: EngineRecord, machine: Machine) -> list[str]:
        """See `Backend`."""
        return [*self._library_problems(record, machine), *self._gpu_problems(record, machine)]

    def rebuild_arguments(self, record: EngineRecord, machine: Machine) -> list[str]:
        """See `Backend`."""
        sms = [gpu.sm for gpu in machine.gpus[:1]] or list(record.sms)
        return [f"--sm {sm}" for sm in sms] if self._is_rtx else []

    def known_issues(self, situation: Situation) -> list[KnownIssue]:
        """See `Backend`."""
        return matching(RTX_ISSUES if self._is_rtx else TENSORRT_ISSUES, situation)

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
        """See `Backend`. A slot's capacity is the engine's, whatever was asked for."""
        del capacity, num_threads
        from engines.backends.tensorrt.run.open import open_engine_sessions  # noqa: PLC0415 - CUDA

        assert record is not None, "needs_engine"
        return open_engine_sessions(bundle, record, self.name, num_slots=num_slots, device=device)

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
        del capacity, num_threads, communicator
        from engines.backends.tensorrt.run.open import open_rank  # noqa: PLC0415 - CUDA

        assert record is not None, "needs_engine"
        return open_rank(bundle, record, self.name, stage, num_slots=num_slots, device=device)

    def open_vision(
        self, bundle: Bundle, record: EngineRecord | None, *, num_threads: int | None = None
    ) -> VisionSession:
        """See `Backend`."""
        del num_threads
        from engines.backends.tensorrt.run.open import open_vision  # noqa: PLC0415 - CUDA

        assert record is not None, "needs_engine"
        return open_vision(bundle, record, self.name)

    def ceilings(self, graph_dtype: str, num_threads: int | None = None) -> tuple[Ceiling, ...]:
        """See `Backend`. The product is an engine of its own, built for this GPU."""
        del num_threads
        from engines.backends.tensorrt.run.open import measure_gpu_ceilings  # noqa: PLC0415 - CUDA

        return measure_gpu_ceilings(self.name, graph_dtype)

    def probe(
        self, bundle: Bundle, record: EngineRecord | None, *, device: str | None = None
    ) -> ProbeSession | None:
        """See `Backend`."""
        from engines.backends.tensorrt.probes import TensorRtProbes, open_tools  # noqa: PLC0415 - heavy

        assert record is not None, "needs_engine"
        return TensorRtProbes(bundle.config, lambda: open_tools(bundle, record, self.name, device))

    def _options(self, architectures: tuple[int, ...], options: Options) -> BuildOptions:
        return BuildOptions(self.name, architectures, **options)

    def _library_problems(self, record: EngineRecord, machine: Machine) -> Iterator[str]:
        built_with = next((record.inputs[name] for name in self.distributions if name in record.inputs), None)
        here = machine.versions.get(self.name)
        if here is None:
            other = next(
                (name for name in TENSORRT_TARGETS if name != self.name and machine.versions.get(name)), None
            )
            hint = (
                f"; {other} is installed, which is another library and reads no such engine" if other else ""
            )
            yield f"it needs {self.name} {built_with}, which is not installed{hint}: {remedy(self.name)}"
        elif built_with is None or Version(here).release[:3] != Version(built_with).release[:3]:
            yield (
                f"it was built with {self.name} {built_with}, installed is {here}: an engine loads in its own version"
            )

    def _gpu_problems(self, record: EngineRecord, machine: Machine) -> Iterator[str]:
        built_for = ", ".join(f"SM{sm}" for sm in record.sms)
        if not machine.gpus:
            yield f"it needs an NVIDIA GPU of {built_for}; `nvidia-smi` lists none"
            return
        num_stages = sum(name != "vision" for name in record.facts)
        if num_stages <= 1 and any(not [*self._problems_of_gpu(record, gpu, "")] for gpu in machine.gpus):
            return  # --device names it, and opening asks that very one
        for gpu in dict.fromkeys(machine.gpus[: max(num_stages, 1)]):  # a stage may go to each of them
            yield from self._problems_of_gpu(record, gpu, built_for)

    def _problems_of_gpu(self, record: EngineRecord, gpu: GpuFacts, built_for: str) -> Iterator[str]:
        if not serves_architecture(record, gpu.sm):
            yield f"it was built for {built_for}, this GPU is {gpu.name}, SM{gpu.sm}"
        branch = driver_branch(gpu.driver)
        if branch < MIN_DRIVER_BRANCH:
            yield (
                f"it needs driver {MIN_DRIVER_BRANCH} or newer (CUDA 13), this one is {gpu.driver}: update the driver"
            )
        # TensorRT keeps kernels that were compiled for the driver it was built under; RTX builds without one.
        elif not self._is_rtx and record.driver and branch < driver_branch(record.driver):
            yield f"it was built under driver {record.driver}, this older one is {gpu.driver}: update the driver"


__all__ = ["DEFAULT_RTX_SMS", "MODULES", "TensorRtBackend", "serves_architecture"]
