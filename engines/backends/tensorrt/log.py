"""TensorRT's log, and how far a build or run is.

Both of its interfaces are classes of the module at hand, so they are made here for a given module. TensorRT calls them
from its own threads.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from engines.backends.facts import WarningFacts
from engines.backends.tensorrt.api import Bindings, ILogger, Severity

Progress = Callable[[str, float], None]
"""Called with what TensorRT does now and the done fraction, 0 to 1, which never falls."""

_REPORT_SECONDS = 0.1
_KEPT_ERRORS = 8

_WHERE = re.compile(r"^\w+\.(?:cpp|hpp|h):\d+: ")
_VARIABLE = re.compile(r"(?<=named )\S+|(?<=input )\w\S*|'[^']*'|\"[^\"]*\"|\([^()]*\)|\d+")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_LAYERS = "Layers:"
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


class BuildLog:
    """Everything a build said at warning level and above, and the memory it announced."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.weights_bytes: int | None = None
        self.activation_bytes: list[int] = []
        self.engine_layers = ""
        """The engine's layers as its inspector tells them, one a line, with the dtypes of their constants."""
        self._warnings: dict[str, WarningFacts] = {}

    def start_anew(self) -> None:
        """Forget it all: the same builder's logger goes on with another network."""
        self.errors.clear()
        self.weights_bytes = None
        self.activation_bytes.clear()
        self.engine_layers = ""
        self._warnings.clear()

    @property
    def warnings(self) -> tuple[WarningFacts, ...]:
        return tuple(self._warnings.values())

    def add_error(self, message: str) -> None:
        self.errors.append(message)

    def add_warning(self, message: str) -> None:
        """Count a warning with those that differ in names and numbers alone."""
        text = _WHERE.sub("", message.strip())
        kind = _VARIABLE.sub("…", text)
        known = self._warnings.get(kind)
        self._warnings[kind] = (
            WarningFacts(known.message, known.count + 1) if known else WarningFacts(text, 1)
        )

    def add_information(self, message: str) -> None:
        """Pick the device memory out of it. TensorRT has no other place for it before an engine is loaded."""
        if found := _WEIGHTS.search(message):
            self.weights_bytes = int(found[1])
        elif found := _ACTIVATIONS.search(message):
            self.activation_bytes.append(int(found[1]))

    def add_detail(self, message: str) -> None:
        """Keep what the engine's inspector says: an engine cannot be loaded, and asked, where there is no GPU."""
        if message.startswith(_LAYERS):
            self.engine_layers += message.removeprefix(_LAYERS)


class Listener(Protocol):
    """What a logger tells."""

    def add_error(self, message: str) -> None: ...
    def add_warning(self, message: str) -> None: ...
    def add_information(self, message: str) -> None: ...
    def add_detail(self, message: str) -> None: ...


class RunLog:
    """What TensorRT said of the call at hand, for the error that tells of it; Python's logging gets all of it."""

    _logger = logging.getLogger("qv_export.tensorrt")

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

    def add_error(self, message: str) -> None:
        self._errors.append(message.strip())
        self._logger.error("%s", message)

    def add_warning(self, message: str) -> None:
        self._logger.info("%s", message)

    def add_information(self, message: str) -> None:
        self._logger.debug("%s", message)

    def add_detail(self, message: str) -> None:
        del message

    def take(self) -> str:
        """Its last errors, one a line, which are not told again."""
        errors = [self._errors.popleft() for _ in range(len(self._errors))]
        return "\n- ".join(errors) or "it gives no reason"


RUN_LOG = RunLog()
"""One for the process, as TensorRT keeps one logger for the process: the first that it was given."""


def make_logger(trt: Bindings, log: Listener) -> ILogger:
    """An `ILogger` that fills `log`. The first one of a process stays for all later builders."""
    severity: Severity = trt.ILogger.Severity
    listeners = {
        severity.INTERNAL_ERROR: log.add_error,
        severity.ERROR: log.add_error,
        severity.WARNING: log.add_warning,
        severity.INFO: log.add_information,
        severity.VERBOSE: log.add_detail,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if listener := listeners.get(severity):
                listener(msg)

    logger: ILogger = Logger()
    return logger


def throttled(report: Progress) -> Progress:
    """Pass on a few reports a second: TensorRT gives thousands."""
    last = 0.0

    def report_sometimes(phase: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            report(phase, fraction)

    return report_sometimes


class PhaseTree:
    """TensorRT's nested phases as one fraction.

    A phase of n steps takes n equal parts of its parent's current step. TensorRT repeats phases, and announces no
    total: the fraction is a guess that only grows.
    """

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._phases: list[list[Any]] = []  # [name, steps, steps done], outermost first
        self._fraction = 0.0

    def start(self, name: str, steps: int) -> None:
        self._phases.append([name, max(steps, 1), 0])
        self._tell()

    def step(self, name: str, step: int) -> None:
        for phase in self._phases:
            if phase[0] == name:
                phase[2] = step + 1
        self._tell()

    def finish(self, name: str) -> None:
        # Inner phases end with their outer one: TensorRT does not promise to finish them one by one.
        depth = next((i for i, phase in enumerate(self._phases) if phase[0] == name), None)
        if depth is not None:
            del self._phases[depth:]
        self._tell()

    def _tell(self) -> None:
        inner = 0.0
        for _, steps, done in reversed(self._phases):
            inner = min((done + inner) / steps, 1.0)
        self._fraction = max(self._fraction, inner)
        self._report(self._phases[-1][0] if self._phases else "Building engine", self._fraction)


def make_progress_monitor(trt: Bindings, report: Progress) -> Any:
    """An `IProgressMonitor` that reports to `report`; keep it alive as long as the build runs."""
    phases = PhaseTree(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # False would cancel the build; the parent process ends it by killing this one

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
