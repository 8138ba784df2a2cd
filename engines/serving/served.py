"""A bundle that answers: its engine and scheduler, its request policy, its media processes. Open means warm."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from engines.open import Choice, open_chosen
from engines.runtime.heap import bound_heap
from engines.runtime.scheduler import Scheduler
from engines.runtime.service import SchedulerService
from engines.runtime.tokens.guided import GuideMaker
from engines.serving.chat import model_inputs
from engines.serving.media.fetching import Fetcher, FetchPolicy
from engines.serving.media.pool import MediaPool
from engines.serving.media.request_media import RequestMedia
from engines.serving.room import Room
from engines.serving.settings import ServerSettings
from engines.serving.warm_up import warm_up
from export.bundle import Bundle
from export.inputs import ModelInputs
from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.decode import LocalReader, MediaReader


class ServedModel:
    """What a server in this process asks.

    Args:
        bundle: opened.
        chosen: what computes.
        settings: slots, context, and the bounds on requests.

    Raises:
        UserError: this machine cannot load the engine.
        Exception: what an engine raised at the first question.
    """

    def __init__(self, bundle: Bundle, chosen: Choice, settings: ServerSettings) -> None:
        bound_heap()
        self.settings = settings
        self.processor = bundle.processor.with_budget(settings.budget)
        self.defaults = bundle.generation_config
        self.limits = settings.request_limits
        self.guides = GuideMaker(
            self.processor.tokenizer, self.defaults.eos_token_ids, bundle.config.decoder.vocab_size
        )
        hosts = frozenset(settings.allowed_hosts)
        self._fetcher = Fetcher(FetchPolicy(hosts)) if hosts else None
        self._engine = open_chosen(
            bundle,
            chosen,
            num_slots=settings.num_slots,
            capacity=settings.capacity,
            num_threads=settings.num_threads,
            device=settings.device,
            num_ranks=settings.num_ranks,
            hostfile=settings.hostfile,
        )
        self.service = SchedulerService(Scheduler(*self._engine, bundle.config, settings.scheduler))
        self.room = Room(settings.max_held_bytes)
        self._pool = MediaPool(settings.media)
        self.service.start()
        try:
            self.warm_up_seconds = warm_up(self.service, self.processor)
            self._engine.keep_compiled()  # now: a server may be killed
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def inputs(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        deadline: float,
        is_cancelled: Callable[[], bool],
        budget: Budget = NO_BUDGET,
        template: Mapping[str, Any] | None = None,
    ) -> ModelInputs:
        """Fetch and decode what bounded messages show, and write the prompt. For a thread: it takes its time.

        Args:
            messages: as `bounded_messages` returned them.
            deadline: of the request, on the monotonic clock.
            is_cancelled: whether the client left; its media are no longer decoded then.
            budget: of pictures and videos that have none of their own.
            template: what else the chat template is asked for, as `Processor.inputs_from_messages` takes it.

        Raises:
            UserError: malformed messages, a picture or video that cannot be used, or more than fits.
        """

        def make_reader(local: LocalReader, _seconds: float) -> MediaReader:
            return self._pool.reader(local, deadline, is_cancelled)

        media = RequestMedia(
            [], self.limits, self._fetcher, deadline=deadline, is_cancelled=is_cancelled, budget=budget
        )
        media.fetch_together(messages)
        resolved = [media.resolved(dict(message)) for message in messages]
        left_seconds = max(deadline - time.monotonic(), 0.0)
        return model_inputs(resolved, media, self.processor, self.limits, left_seconds, make_reader, template)

    def drain(self) -> bool:
        """Take nothing new; True when all that was taken is answered, False when the settings' time is up before."""
        return self.service.drain(self.settings.drain_seconds)

    def close(self) -> None:
        """End everything; answers that are being written are cancelled."""
        self.service.close()
        self._pool.close()
        self._engine.close()
