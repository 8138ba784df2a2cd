"""Answers rows on a Ray cluster: one actor a GPU, fed and watched by Ray Data, which asks again what died.

The trap: actors that take every CPU of a cluster leave none for the tasks that feed them, and the job never ends. Here
they take half of them at most, whatever the cluster has.
"""

import asyncio
import pickle
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engines.batch.answers import Answered, Waiting, failed_row
from engines.batch.rows import Row
from engines.batch.worker import BatchWorker, ModelChoice
from export.errors import UserError
from export.install import require_extra

_MOST_RETRIES = 3
"""Of a batch whose actor died."""
_LARGEST_BATCH = 64
_BATCHES_PER_ACTOR = 4
"""At least: the smallest share of the work that waits for one actor at the end."""


@dataclass(frozen=True)
class Share:
    """What each actor takes of a cluster."""

    num_actors: int
    num_cpus: float
    num_gpus: int
    num_threads: int
    """Of its engine."""


def share_of(resources: Mapping[str, float], device: str, num_nodes: int, num_workers: int | None) -> Share:
    """Actors for a cluster, and room for what feeds them.

    Args:
        resources: of the whole cluster, as Ray tells them.
        device: where the engine computes.
        num_nodes: machines of the cluster.
        num_workers: actors that were asked for; None: one a GPU, or one a machine where CPUs compute.

    Raises:
        UserError: no CPU at all, or more actors than GPUs.
    """
    cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
    if cpus <= 0:
        raise UserError(
            "The Ray cluster has no CPU for what feeds the workers.", "Start its nodes with --num-cpus."
        )
    if device == "cpu":
        num_actors = num_workers or num_nodes
        return Share(num_actors, min(1.0, cpus / 2 / num_actors), 0, max(1, int(cpus) // num_actors))
    if (num_workers or 1) > gpus:
        raise UserError(f"A worker takes a GPU: {num_workers or 1} asked, the Ray cluster has {gpus}.")
    num_actors = num_workers or gpus
    return Share(num_actors, min(1.0, cpus / 2 / num_actors), 1, 1)


def batch_size(num_rows: int, share: Share, num_slots: int) -> int:
    """Rows of one call: several for each slot, and not so many that one actor works alone at the end."""
    even = -(-num_rows // (_BATCHES_PER_ACTOR * share.num_actors))
    return max(1, min(_LARGEST_BATCH, max(num_slots, even)))


class RowWorker(BatchWorker):
    """What an actor holds: rows in, answers out, both as bytes, which a table can carry."""

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        rows = [pickle.loads(bytes(row)) for row in batch["row"]]
        try:
            answers = self.answer(rows)
        except UserError as mistake:
            return {"answered": [pickle.dumps(mistake)] * len(rows)}
        return {"answered": [pickle.dumps(one) for one in answers]}


async def answers_of_ray(
    choice: ModelChoice, rows: Iterator[Row], waiting: Waiting, address: str, num_workers: int | None
) -> AsyncGenerator[Answered, None]:
    """Every row's answer, as Ray gives them.

    Every node needs this package, and files under the paths that they have here. How long engines waited is not told.

    Args:
        choice: the model that each actor opens.
        rows: to answer.
        waiting: left as it is.
        address: of the cluster; `auto` finds the one that this machine belongs to, `local` starts one here.
        num_workers: actors; None: see `share_of`.

    Raises:
        UserError: no Ray, no cluster, or a model that cannot be opened.
    """
    del waiting
    require_extra("ray", "A run on a Ray cluster")
    left = {row.id: row for row in rows}
    if not left:
        return
    iterator = await asyncio.to_thread(_start, choice, list(left.values()), address, num_workers)
    try:
        while (batch := await asyncio.to_thread(next, iterator, None)) is not None:
            for data in batch["answered"]:
                answered = pickle.loads(bytes(data))
                if isinstance(answered, UserError):
                    raise answered
                if left.pop(answered.row.id, None) is not None:
                    yield answered
        for row in left.values():
            message = f"The worker died each time that it had this row under way, {_MOST_RETRIES} times."
            yield failed_row(row, message, "worker_died", 500)
    finally:
        await asyncio.to_thread(_shut_down)


def _start(
    choice: ModelChoice, rows: Sequence[Row], address: str, num_workers: int | None
) -> Iterator[Mapping[str, Any]]:
    import ray  # noqa: PLC0415 - an extra
    import ray.data  # noqa: PLC0415

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"No Ray cluster at {address!r:.100}: {error!s:.300}.",
            "Start one (`ray start --head`) and give its address.",
        ) from None
    _, chosen, settings = choice.resolve()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    share = share_of(ray.cluster_resources(), chosen.backend.device, len(nodes), num_workers)
    if choice.num_threads is None:
        choice = replace(choice, num_threads=share.num_threads)
    choice = replace(choice, bundle=choice.bundle.absolute())
    size = batch_size(len(rows), share, settings.num_slots)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a batch that cannot be answered is told row by row, and stops no other
    data = ray.data.from_items(
        [{"row": pickle.dumps(row)} for row in rows], override_num_blocks=-(-len(rows) // size)
    ).map_batches(
        RowWorker,
        fn_constructor_args=(choice,),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=share.num_actors),
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus or None,
        scheduling_strategy="SPREAD",
        max_task_retries=_MOST_RETRIES,
    )
    return iter(data.iter_batches(batch_size=None, batch_format="numpy"))


def _shut_down() -> None:
    import ray  # noqa: PLC0415 - an extra

    ray.shutdown()
