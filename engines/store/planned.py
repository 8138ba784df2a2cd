"""A build before it runs: what was asked, made exact; what is there already, what it costs, what will not fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from engines.backends import backend_of
from engines.backends.base import bundle_costs, device_costs, require_kv_cache
from engines.backends.known_issues import KnownIssue, Situation
from engines.gpus import GpuFacts
from engines.sizing.choose_limits import choose_limits
from engines.sizing.costs import (
    EngineCosts,
    Shortage,
    free_disk_bytes,
    free_ram_bytes,
    plan_engine,
    shortages,
)
from engines.sizing.divide import Proposal, propose
from engines.store.build import Built, Progress, build_engine_directory, reusable
from engines.store.cache import EngineRequest, key_inputs, reason_to_build
from export.bundle import Bundle
from export.records.manifest import content_key
from plugins.registry import known_plugins

if TYPE_CHECKING:
    from engines.sizing.images import ImageSizes

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class PlannedBuild:
    """Everything that decides what a build does."""

    bundle: Bundle
    request: EngineRequest
    gpus: tuple[GpuFacts, ...]
    """Of this machine; none where the backend had no need to know them."""
    jobs: int
    """Graphs built at the same time; each takes its memory."""
    gpu_memory_gb: float | None
    """Of the card that will run it; None: not named."""
    sizes: "ImageSizes | None"
    """Of the images whose sizes gave limits."""

    @property
    def inputs(self) -> dict[str, str]:
        """Everything that could change the engine's bytes, by name: what its key is a hash of."""
        return key_inputs(self.bundle.manifest.key, self.request)

    @property
    def directory(self) -> Path:
        """Where the engine is, or would be."""
        return self.bundle.engine_directory(content_key(self.inputs))

    def reason(self) -> str | None:
        """Why it must be built; None where it is there."""
        return reason_to_build(self.bundle.directory, self.inputs)

    def built(self) -> Built | None:
        """The engine, if it was built before."""
        return reusable(self.bundle, self.request)

    @cached_property
    def costs(self) -> EngineCosts:
        """What it takes, from pixels to bytes."""
        backend = self.request.backend
        costs_of = bundle_costs(backend, self.bundle)
        dtype = self.bundle.manifest.dtype
        return plan_engine(backend.name, self.bundle.config, dtype, self.request.limits, costs_of, self.jobs)

    @property
    def device_bytes(self) -> int | None:
        """Memory of the card that will run it: the named one's, or this machine's smallest that it is built for."""
        if self.gpu_memory_gb:
            return int(self.gpu_memory_gb * 1e9)
        fitting = (gpu for gpu in self.gpus if gpu.sm in self.request.sms and gpu.memory_mib)
        return min((gpu.memory_mib << 20 for gpu in fitting), default=None)

    def shortages(self) -> list[Shortage]:
        """What does not fit into this machine, or into the GPU that will run the engine."""
        disk_bytes = free_disk_bytes(self.bundle.directory)
        return shortages(self.costs, free_ram_bytes(), disk_bytes, self.device_bytes)

    def divisions(self, num_gpus: int) -> Proposal:
        """How so many GPUs of the named memory hold the model, whatever the bundle's own division."""
        assert self.gpu_memory_gb is not None, "a card of no size"
        backend, dtype = self.request.backend, self.bundle.manifest.dtype
        return propose(
            lambda config, limits: backend.costs(config, dtype, limits),
            self.bundle.config,
            self.request.limits,
            num_gpus,
            self.gpu_memory_gb,
        )

    def known_issues(self) -> list[KnownIssue]:
        """What is known to go wrong with such an engine."""
        situation = Situation(
            version=self.request.backend.version() or "0",
            sms=self.request.sms,
            limits=asdict(self.request.limits),
            dtype=self.bundle.manifest.dtype,
            has_plugins=bool(known_plugins()),
        )
        return self.request.backend.known_issues(situation)

    def build(self, progress: Progress, *, rebuild: bool = False) -> Built:
        """Build both graphs, unless they are there. Args and errors as `build_engine_directory`."""
        return build_engine_directory(
            self.bundle, self.request, self.gpus, self.jobs, progress, rebuild=rebuild
        )


def plan_build(
    bundle: Bundle,
    target: str,
    *,
    gpu_facts: Callable[[], Sequence[GpuFacts]],
    sms: Sequence[int] = (),
    limits: Mapping[str, int] = _NOTHING,
    options: Mapping[str, Any] = _NOTHING,
    images: Path | None = None,
    images_per_prompt: int = 1,
    gpu_memory_gb: float | None = None,
    jobs: int = 1,
) -> PlannedBuild:
    """Make what was asked exact.

    Args:
        bundle: opened.
        target: a backend's name.
        gpu_facts: this machine's GPUs, asked only where it matters: `nvidia-smi` may take a second.
        sms: architectures, compute capability x 10; empty: the backend's choice.
        limits: of `Limits`, by name; what is left out follows the images, or the defaults.
        options: the backend's own, by name.
        images: a folder of images like those that will be served, whose sizes give limits.
        images_per_prompt: how many of them come together.
        gpu_memory_gb: of the card that will run it, to plan for.
        jobs: graphs built at the same time.

    Raises:
        UserError: what was asked cannot be built here.
    """
    backend = backend_of(target)
    require_kv_cache(backend, bundle)
    sizes, proposed = _limits_of_images(bundle, images, images_per_prompt)
    chosen = choose_limits(bundle.config, limits, proposed, device_costs(backend, bundle), gpu_memory_gb)
    asked: list[GpuFacts] = []

    def gpus_here() -> Sequence[GpuFacts]:
        asked.extend(gpu_facts())
        return asked

    request = EngineRequest(backend, chosen, backend.architectures(sms, gpus_here), options)
    return PlannedBuild(bundle, request, tuple(asked), jobs, gpu_memory_gb, sizes)


def _limits_of_images(
    bundle: Bundle, folder: Path | None, images_per_prompt: int
) -> "tuple[ImageSizes | None, dict[str, int]]":
    """The sizes in a folder, and the limits that they ask for."""
    if folder is None:
        return None, {}
    # A build that is there already answers within a second: Pillow and NumPy wait for a folder that is given.
    from engines.sizing.images import limits_for_images, read_image_sizes  # noqa: PLC0415
    from export.processor.settings import load_settings  # noqa: PLC0415

    settings, _ = load_settings(bundle.directory)
    sizes = read_image_sizes(folder, settings)
    return sizes, limits_for_images(sizes, settings, images_per_prompt)
