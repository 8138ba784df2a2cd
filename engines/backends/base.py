"""What a backend is: everything that the rest asks of a target, in one protocol.

A target is one folder below `engines/backends/` with a class like this, and one row of the registry in `__init__.py`.
Nobody else asks for a target by its name. Nothing here imports a target's library: a backend does so when it builds,
opens or probes, and never before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from engines.backends.ceilings import Ceiling
from engines.backends.facts import EngineFacts
from engines.backends.known_issues import KnownIssue, Situation
from engines.gpus import GpuFacts
from engines.machine import Machine
from engines.sizing.costs import CostsOf, ModelCosts
from engines.sizing.limits import Limits
from engines.sizing.stages import staged_costs
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.errors import UserError
from export.models.configuration import KvCachePrecision
from export.records.engine_record import EngineRecord

if TYPE_CHECKING:
    from engines.parallel.communicator import Communicator
    from engines.session import Engine, ProbeSession, RankSessions, VisionSession

GraphProgress = Callable[[str, float], None]
"""Told what is being done to one graph, and the fraction of it that is done."""

Options = Mapping[str, Any]
"""A backend's own options of `qv-export build`, by name; what was not asked for is absent."""


class Backend(Protocol):
    """A consumer of a bundle's graphs: builds engines from them, or opens them as they are."""

    @property
    def name(self) -> str:
        """What `--target` calls it."""
        ...

    @property
    def distributions(self) -> tuple[str, ...]:
        """Packages whose version is the library's, the first installed of which counts."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Folders of our own code that shape what is built."""
        ...

    @property
    def needs_engine(self) -> bool:
        """Whether only what was built can be opened. False: the graphs themselves are, and a record holds limits."""
        ...

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """Where its engines compute."""
        ...

    @property
    def rounds_inputs_of_few_bits(self) -> bool:
        """Whether its products of weights in few bits round their input to 8 bits, which the graph does not ask for."""
        ...

    def kv_cache_problem(self, precision: KvCachePrecision) -> str | None:
        """Why it keeps no cache in 8 bits, as half a sentence; None: it does."""
        ...

    @property
    def triton_platform(self) -> str | None:
        """Triton's own backend that loads its engine files; None: only our Python model opens them."""
        ...

    @property
    def option_names(self) -> frozenset[str]:
        """The options of `qv-export build` that mean something to it."""
        ...

    def version(self) -> str | None:
        """Version of its library, or None where that cannot be imported or is too old to be used."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be used here, with the line that installs it; None where it can. Loads no library."""
        ...

    def architectures(self, asked: Sequence[int], gpus: Callable[[], Sequence[GpuFacts]]) -> tuple[int, ...]:
        """The architectures to build for, ascending, compute capability x 10; none where that has no meaning.

        Args:
            asked: what the user gave; empty: the backend's choice.
            gpus: of this machine, asked only where it matters: `nvidia-smi` may take a second.

        Raises:
            UserError: what was asked has no meaning here, or cannot be built here.
        """
        ...

    def serves(self, sm: int) -> bool:
        """Whether its engines can run on a GPU of an architecture (compute capability x 10)."""
        ...

    def advice(self, gpus: Sequence[GpuFacts]) -> str:
        """What `doctor` says beside it: where it builds and runs, or what is missing for it. May be empty."""
        ...

    def check_options(self, architectures: tuple[int, ...], options: Options) -> None:
        """Refuse options that contradict each other.

        Raises:
            UserError: all problems at once.
        """
        ...

    def key_options(self, architectures: tuple[int, ...], options: Options) -> Mapping[str, str]:
        """Every option that could change an engine's bytes, defaults included, for the engine's key.

        What changes only how long a build takes is left out.
        """
        ...

    def compute_dtypes(self, graph_dtype: str) -> tuple[str, ...]:
        """What engines compute in for graphs of a dtype, the default first."""
        ...

    @property
    def dtype_reason(self) -> str:
        """Why it computes in nothing else, for a message."""
        ...

    def costs(self, config: ModelConfig, graph_dtype: str, limits: Limits) -> ModelCosts:
        """What engines of these limits take, by stated formulas; see `engines.sizing.costs`."""
        ...

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
        """Build one graph.

        Args:
            bundle: opened, so known to be as its manifest says.
            graph: which of its graphs.
            limits: shapes to build for.
            architectures: as `architectures` gave them.
            options: as `check_options` took them.
            output: file for the engine; not written by a backend without engine files.
            progress: told a few times a second.
            outputs: values inside the graph that the engine shall give as well.

        Raises:
            UserError: the library is missing, limits that cannot be served, no space.
            EngineError: the library refuses the graph; its own words are quoted.
        """
        ...

    def load_problems(self, record: EngineRecord, machine: Machine) -> list[str]:
        """What keeps an engine from being loaded on a machine, as sentences. Loads no library."""
        ...

    def rebuild_arguments(self, record: EngineRecord, machine: Machine) -> list[str]:
        """Arguments of `qv-export build`, beside target and limits, for an engine like this on a machine."""
        ...

    def known_issues(self, situation: Situation) -> list[KnownIssue]:
        """What is known to go wrong in a situation."""
        ...

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
        """Load what computes.

        Args:
            bundle: opened.
            record: the engine; None only for a backend that opens the graphs themselves.
            num_slots: KV slots.
            capacity: tokens that a slot must hold; an engine may have room for more.
            num_threads: CPU threads of each graph; None takes every core. Ignored where a GPU computes.
            device: which GPU, such as `cuda:1`; None takes the first.

        Raises:
            UserError: more slots or tokens than the engine has; a damaged engine; a device that it does not have.
            EngineError: the library refuses it.
        """
        ...

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
        """Load what one of several processes that compute together holds: the vision graph and a stage.

        Args:
            bundle, record, num_slots, capacity, num_threads, device: as `open`.
            stage: which of the decoder's; None: none, this one encodes images alone.
            communicator: what the ranks that a stage is divided among sum and gather through; None: it is whole.

        Raises:
            UserError: as `open`, or this backend computes in one process alone.
            EngineError: as `open`.
        """
        ...

    def open_vision(
        self, bundle: Bundle, record: EngineRecord | None, *, num_threads: int | None = None
    ) -> VisionSession:
        """Load the vision graph alone. Args and errors as `open`."""
        ...

    def ceilings(self, graph_dtype: str, num_threads: int | None = None) -> tuple[Ceiling, ...]:
        """What this machine reaches at a copy and at a matrix product, as its engines compute. Takes seconds.

        Args:
            graph_dtype: of the bundle's graphs.
            num_threads: as for `open`.

        Raises:
            UserError, EngineError: as `open`.
        """
        ...

    def probe(
        self, bundle: Bundle, record: EngineRecord | None, *, device: str | None = None
    ) -> ProbeSession | None:
        """A session that shows values inside the graphs; None: it cannot. Loads nothing until it is asked.

        Args: device: as for `open`.
        """
        ...


def one_process_alone(backend: Backend) -> UserError:
    """Why a backend opens no ranks."""
    return UserError(
        f"--ranks: {backend.name} computes in one process alone.",
        "Leave --ranks out, or choose another target.",
    )


def require_kv_cache(backend: Backend, bundle: Bundle) -> None:
    """Refuse a bundle whose cache is kept in 8 bits where the backend cannot.

    Raises:
        UserError: it cannot, and why.
    """
    precision = bundle.config.decoder.kv_cache
    problem = None if precision is None else backend.kv_cache_problem(precision)
    if problem is not None:
        raise UserError(
            f"{bundle.directory} keeps its KV cache in {precision}, which {backend.name} does not: {problem}.",
            "Export the checkpoint without --kv-cache for this target.",
        )


def device_costs(backend: Backend, bundle: Bundle) -> CostsOf | None:
    """What a bundle's engines take on the device, as a function of their limits; None where that is the host."""
    if backend.device == "cpu":
        return None
    return bundle_costs(backend, bundle)


def bundle_costs(backend: Backend, bundle: Bundle) -> CostsOf:
    """What a bundle's engines take, graph by graph, as a function of their limits."""
    dtype = bundle.manifest.dtype
    return staged_costs(
        lambda config, limits: backend.costs(config, dtype, limits), bundle.config, bundle.rank_stages
    )
