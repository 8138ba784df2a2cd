"""What ranks do together, with threads as ranks: order, overlap, errors."""

import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.ranks.layout import layout_of
from engines.ranks.messages import Encode, Forward
from engines.ranks.rank import Rank
from engines.runtime.row_groups import row_groups
from engines.session import CallPlan, EngineError, RankSessions
from export.errors import UserError
from export.inputs import DecoderInputs, VisionInputs

HIDDEN = 3


class QueuePeers:
    """Ranks that are threads of this process."""

    def __init__(self, rank, size, queues):
        self.rank, self.size, self._queues = rank, size, queues

    def send(self, to, message):
        self._queues[self.rank, to].put(message)

    def receive(self, origin):
        return self._queues[origin, self.rank].get(timeout=30)


def queues_between(size):
    """One from each rank to each, all made before a thread looks for one."""
    return {pair: queue.Queue() for pair in itertools.product(range(size), repeat=2)}


class CountingStage:
    """Adds its number to what the stage before gave; the first begins with the token ids."""

    num_slots, capacity = 8, 64

    def __init__(self, number, num_stages):
        self.number, self.is_last = number, number == num_stages - 1
        self.calls = []
        self.before_run = lambda: None

    def plan(self, inputs, num_groups):
        return CallPlan(list(row_groups(inputs, num_groups)), np.concatenate)

    def run(self, first_slot, values):
        self.before_run()
        self.calls.append((first_slot, values["visual_embeds"].shape))
        taken = values["hidden"] if self.number else values["token_ids"][..., None].astype(np.float32)
        return {"logits" if self.is_last else "hidden": taken * 10 + self.number}


class SumVision:
    def encode(self, inputs):
        return inputs.patches.reshape(-1, 4, inputs.patches.shape[1]).sum(1)


class Group:
    """A group of threads; the test's own thread is the first rank."""

    def __init__(self, num_ranks, num_stages, num_parts=1):
        layout = layout_of(num_ranks, num_stages, num_parts)
        queues = queues_between(num_ranks)
        self.num_stages = num_stages
        numbers = [layout.stage_of(rank) for rank in range(layout.num_decoding)]
        self.stages = [CountingStage(number, num_stages) for number in numbers]
        self.visions = [SumVision() for _ in range(num_ranks)]
        self.peers = [QueuePeers(rank, num_ranks, queues) for rank in range(num_ranks)]
        stages = [*self.stages, *[None] * (num_ranks - len(self.stages))]
        self.ranks = [
            Rank(peers, layout, RankSessions(vision, stage))
            for peers, vision, stage in zip(self.peers, self.visions, stages, strict=True)
        ]
        self.pool = ThreadPoolExecutor(num_ranks)
        self.threads = [self.pool.submit(self.follow, number) for number in range(1, num_ranks)]

    def follow(self, number):
        while (command := self.peers[number].receive(0)) is not None:
            self.ranks[number].follow(command)

    def lead(self, command):
        return self.ranks[0].lead(command)

    def end(self):
        for number in range(1, len(self.ranks)):
            self.peers[0].send(number, None)
        for thread in self.threads:
            thread.result(30)


@pytest.fixture
def group(request):
    made = Group(*request.param)
    yield made
    made.end()


def step(tokens, num_embeds=0):
    batch = len(tokens)
    return DecoderInputs(
        token_ids=np.array(tokens, np.int64)[:, None],
        visual_embeds=np.ones((num_embeds, HIDDEN), np.float32),
        position_ids=np.zeros((3, batch, 1), np.int32),
        write_index=np.zeros(batch, np.int64),
        kv_lengths=np.ones(batch, np.int64),
        logits_index=np.zeros((batch, 1), np.int64),
    )


def images(num):
    rng = np.random.default_rng(num)
    lengths = 4 * rng.integers(1, 9, num)
    total = int(lengths.sum())
    return VisionInputs.of(
        rng.standard_normal((total, 5)).astype(np.float32),
        np.arange(2 * total, dtype=np.int32).reshape(2, total),
        np.concatenate([[0], lengths.cumsum()]).astype(np.int32),
    )


@pytest.mark.parametrize(
    "group", [(1, 1), (2, 2), (3, 3), (4, 2), (2, 1, 2), (4, 2, 2), (7, 3, 2)], indirect=True
)
def test_every_call_goes_through_all_stages_in_order_and_comes_back_whole(group):
    calls = [(0, step([1, 2, 3, 4, 5])), (5, step([6])), (2, step([7, 8]))]
    answers = group.lead(Forward(calls))
    for (_, inputs), answer in zip(calls, answers, strict=True):
        expected = inputs.token_ids[..., None].astype(np.float32)
        for number in range(group.num_stages):
            expected = expected * 10 + number
        assert np.array_equal(answer, expected)
    group.end()  # of a stage's parts only the first is waited for
    slots = [first for first, _ in group.stages[0].calls]
    for stage in group.stages:
        assert [first for first, _ in stage.calls] == slots


@pytest.mark.parametrize("group", [(3, 3)], indirect=True)
def test_embeddings_reach_the_first_stage_alone_and_their_number_reaches_all(group):
    group.lead(Forward([(0, step([1], num_embeds=7))]))
    assert [stage.calls for stage in group.stages] == [[(0, (7, HIDDEN))], [(0, (7, 0))], [(0, (7, 0))]]


@pytest.mark.parametrize("group", [(2, 2), (3, 3)], indirect=True)
def test_stages_work_at_the_same_time_on_the_groups_of_a_step(group):
    # Every stage waits for all the others to be in a call: only groups in flight together pass.
    meeting = threading.Barrier(len(group.stages), timeout=30)
    full = [len(group.stages) - 1 - number for number in range(len(group.stages))]

    def meet(number):
        seen = len(group.stages[number].calls)
        if seen == full[number]:
            meeting.wait()

    for number, stage in enumerate(group.stages):
        stage.before_run = lambda number=number: meet(number)
    answers = group.lead(Forward([(0, step([1, 2, 3, 4, 5, 6]))]))
    assert answers[0].shape == (6, 1, 1)


@pytest.mark.parametrize("group", [(4, 2, 2)], indirect=True)
def test_embeddings_reach_every_part_of_the_first_stage(group):
    group.lead(Forward([(0, step([1], num_embeds=7))]))
    group.end()
    shapes = [[shape for _, shape in stage.calls] for stage in group.stages]
    assert shapes == [[(7, HIDDEN)], [(7, HIDDEN)], [(7, 0)], [(7, 0)]]


def test_an_error_in_a_part_of_a_stage_is_raised_where_it_happens():
    """Its like would wait for it in the middle of the graph: the process must end, and with it the group."""

    def fail():
        raise ValueError("no memory")

    layout, stage = layout_of(2, 1, 2), CountingStage(0, 1)
    stage.before_run = fail
    queues = queues_between(2)
    for number in range(2):
        rank = Rank(QueuePeers(number, 2, queues), layout, RankSessions(SumVision(), stage))
        with pytest.raises(ValueError, match="no memory"):
            (rank.follow if number else rank.lead)(Forward([(0, step([1]))]))


@pytest.mark.parametrize("group", [(1, 1), (3, 3)], indirect=True)
@pytest.mark.parametrize(
    "error", [ValueError("no such head"), UserError("too large"), EngineError("refused")]
)
def test_an_error_in_any_stage_is_its_call_s_and_the_next_call_is_answered(group, error):
    def fail():
        raise error

    for stage in group.stages:
        stage.before_run = fail
        failed, _ = group.lead(Forward([(0, step([1, 2, 3])), (0, step([4]))]))
        assert isinstance(failed, UserError if isinstance(error, UserError) else EngineError)
        assert str(error) in str(failed)
        stage.before_run = lambda: None
        (answer,) = group.lead(Forward([(0, step([1]))]))
        assert not isinstance(answer, Exception)


@pytest.mark.parametrize("group", [(1, 1), (2, 1), (4, 2)], indirect=True)
@pytest.mark.parametrize("num", [1, 3, 11])
def test_images_are_dealt_to_every_rank_and_gathered_in_order(group, num):
    inputs = images(num)
    (answer,) = group.lead(Encode(inputs))
    assert np.array_equal(answer, SumVision().encode(inputs))


@pytest.mark.parametrize("group", [(3, 1)], indirect=True)
def test_an_encoder_that_fails_on_any_rank_fails_the_call_alone(group):
    def broken(_inputs):
        raise RuntimeError("no memory")

    group.visions[2].encode = broken
    (failed,) = group.lead(Encode(images(6)))
    assert "RuntimeError: no memory" in str(failed)
    del group.visions[2].encode
    inputs = images(6)
    (answer,) = group.lead(Encode(inputs))
    assert np.array_equal(answer, SumVision().encode(inputs))


def test_a_decoder_of_more_stages_than_ranks_is_refused():
    with pytest.raises(UserError, match=r"--ranks 2: this bundle's decoder has 3 stages.*--ranks 3"):
        layout_of(2, 3)
    with pytest.raises(UserError, match=r"2 stages of 4 parts, each a rank of its own.*--ranks 8"):
        layout_of(7, 2, 4)
