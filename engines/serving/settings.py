"""What an operator may set about the chat model, and its way through `config.pbtxt`.

`qv-export deploy triton` writes the settings as the model's parameter "settings", JSON; the model reads them at load.
Every bound of the scheduler and of a request is one of them, so a deployment is tuned without new code.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.open import find_engine
from engines.ranks.layout import layout_of
from engines.runtime.scheduler_limits import SchedulerLimits
from engines.serving.limits import RequestLimits
from engines.serving.media.fetching import host_problem
from engines.serving.media.pool import MediaSettings
from export.bundle import Bundle
from export.errors import UserError
from export.files.json_fields import dataclass_from_json
from export.files.json_object import parse_json_object
from export.processor.media.budget import NO_BUDGET, Budget, read_budget

PARAMETER = "settings"
SERVER_BUDGETS = ("min_pixels", "max_pixels", "fps", "min_frames", "max_frames", "total_pixels")
"""What an operator may say of all pictures and videos. A request's own budget is bounded by the most of them."""
DEFAULT_SLOTS = 8
DEFAULT_CAPACITY_TOKENS = 4096


@dataclass(frozen=True)
class ServerSettings:
    """One chat model's settings.

    Raises:
        UserError: values out of range; all of them at once.
    """

    num_slots: int = DEFAULT_SLOTS
    """Answers written at the same time."""
    capacity: int = DEFAULT_CAPACITY_TOKENS
    """Tokens of prompt and answer in one KV slot."""
    num_threads: int | None = None
    """CPU threads of each engine session; None lets ONNX Runtime take all cores."""
    device: str | None = None
    """Which GPU, such as `cuda:1`, where one computes; None: the first."""
    num_ranks: int | None = None
    """Processes that compute together, each a stage of the bundle; None: the server's own."""
    hostfile: str | None = None
    """Machines of the ranks, as `mpirun` reads them; None: this one, or those that Slurm gave."""
    engine: str | None = None
    """Key of the bundle's TensorRT engine that computes, on the GPU; None: ONNX Runtime, on the CPU."""
    drain_seconds: float = 30.0
    """How long answers that are being written may go on when the model is unloaded."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that pictures may be fetched from, `*.example.org` for all below one; none: web addresses are refused."""
    max_held_bytes: int = 192 << 20
    """Bodies and files of all requests together that are not decoded yet; more are asked to come again. One request
    alone may exceed it, within its own limits."""
    budget: Budget = NO_BUDGET
    """Of pictures and videos whose requests say nothing else; `SERVER_BUDGETS` of it."""
    scheduler: SchedulerLimits = field(default_factory=SchedulerLimits)
    requests: RequestLimits = field(default_factory=RequestLimits)
    media: MediaSettings = field(default_factory=MediaSettings)

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a whole number of at least 1, found {value!r}"
            for name, value in (
                ("num_slots", self.num_slots),
                ("capacity", self.capacity),
                ("max_held_bytes", self.max_held_bytes),
                ("num_threads", 1 if self.num_threads is None else self.num_threads),
                ("num_ranks", 1 if self.num_ranks is None else self.num_ranks),
            )
            if type(value) is not int or value < 1
        ]
        if not self.drain_seconds >= 0:
            problems.append(f"drain_seconds must be at least 0, found {self.drain_seconds!r}")
        if self.hostfile is not None and self.num_ranks is None:
            problems.append("hostfile names the machines of ranks, and num_ranks asks for none")
        problems += [
            f"allowed_hosts: {problem}" for problem in map(host_problem, self.allowed_hosts) if problem
        ]
        problems += [
            f"budget: {name} is a request's own to ask"
            for name in self.budget.asked
            if name not in SERVER_BUDGETS
        ]
        if problems:
            raise UserError("The server's settings are out of range:\n- " + "\n- ".join(problems))

    @property
    def max_requests(self) -> int:
        """In the model at once, from parsing to the last response: those that write, and those that wait."""
        return self.num_slots + self.scheduler.max_queue

    @property
    def request_limits(self) -> RequestLimits:
        """With the context of this server: what cannot fit into it is refused before it is decoded."""
        longest = self.requests.max_context or self.capacity
        frames = self.requests.max_seen_frames or self.budget.max_frames
        return replace(self.requests, max_context=min(longest, self.capacity), max_seen_frames=frames)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerSettings":
        """Read what `to_json` wrote; what is left out has its default.

        Raises:
            UserError: no JSON object, unknown keys, values out of range.
        """
        return dataclass_from_json(cls, parse_json_object(text, f'parameter "{PARAMETER}"'), PARAMETER)


def settings_for(
    bundle: Bundle,
    engine_key: str | None,
    *,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
    device: str | None = None,
    num_ranks: int | None = None,
    hostfile: Path | None = None,
    max_queue: int | None,
    allowed_hosts: Sequence[str],
    budgets: Mapping[str, Any] | None = None,
    strict_media: bool = False,
    drain_seconds: float = ServerSettings.drain_seconds,
) -> ServerSettings:
    """What a command line asks for; None follows the engine that will answer, or the defaults.

    Raises:
        UserError: no such engine, fewer ranks than stages, or values out of range.
    """
    longest = bundle.config.decoder.max_position_embeddings
    if max_context is not None and max_context > longest:
        raise UserError(f"--max-context {max_context} is more than the model's {longest}.")
    built_for = find_engine(bundle, engine_key).limits if engine_key else {}
    _require_within(built_for, max_batch=("--slots", num_slots), max_context=("--max-context", max_context))
    if num_ranks is not None:
        layout_of(num_ranks, len(bundle.stages), bundle.manifest.tensor_parallel)
    usual_context = min(DEFAULT_CAPACITY_TOKENS, longest)
    settings = ServerSettings(
        num_slots=built_for.get("max_batch", DEFAULT_SLOTS) if num_slots is None else num_slots,
        capacity=built_for.get("max_context", usual_context) if max_context is None else max_context,
        num_threads=num_threads,
        device=device,
        num_ranks=num_ranks,
        hostfile=None if hostfile is None else str(hostfile.absolute()),
        engine=engine_key,
        allowed_hosts=tuple(host.lower() for host in allowed_hosts),
        budget=read_budget("video", budgets or {}, "The server's budget"),
        requests=RequestLimits(strict_media=strict_media),
        drain_seconds=drain_seconds,
    )
    if budgets:
        bundle.processor.with_budget(settings.budget)  # raises where the checkpoint cannot follow it
    scheduler = replace(settings.scheduler, max_patches_per_picture=built_for.get("max_patches"))
    if max_queue is not None:
        scheduler = replace(scheduler, max_queue=max_queue)
    return replace(settings, scheduler=scheduler)


def _require_within(built_for: Mapping[str, int], **asked: tuple[str, int | None]) -> None:
    """Refuse what an engine of these limits cannot give: it would fail when the server loads it."""
    beyond = [
        (option, limit, value)
        for limit, (option, value) in asked.items()
        if value is not None and value > built_for.get(limit, value)
    ]
    if beyond:
        raise UserError(
            "; ".join(
                f"{option} {value} is more than the {built_for[limit]} that the engine was built for"
                for option, limit, value in beyond
            )
            + ".",
            "Ask for no more, or build another engine with "
            + " ".join(f"--{limit.replace('_', '-')} {value}" for _, limit, value in beyond)
            + ".",
        )
