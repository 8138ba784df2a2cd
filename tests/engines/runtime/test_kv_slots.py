import numpy as np
import pytest

from engines.runtime.kv_slots import EMPTY, CacheContent, KvSlots


def content(
    token_ids: list[int], pictures: dict[int, bytes] | None = None, positions: list[int] | None = None
) -> CacheContent:
    position_ids = np.tile(np.array(positions or range(len(token_ids)), np.int32), (3, 1))
    pairs = tuple((pictures or {}).items())
    return CacheContent(np.array(token_ids, np.int64), position_ids, pairs, len(token_ids))


PROMPT = content([1, 7, 7, 2, 7, 7, 3], {1: b"cat", 4: b"dog"})


@pytest.mark.parametrize(
    ("other", "num_shared"),
    [
        (PROMPT, 7),
        (EMPTY, 0),
        (content([1, 7, 7, 2, 7, 7, 3, 4], {1: b"cat", 4: b"dog"}), 7),
        (content([1, 7, 7, 2, 8], {1: b"cat"}), 4),
        (content([5, 7, 7, 2, 7, 7, 3], {1: b"cat", 4: b"dog"}), 0),
        (content([1, 7, 7, 2, 7, 7, 3], {1: b"cat", 4: b"cow"}), 4),
        (content([1, 7, 7, 2, 7, 7, 3], {1: b"cow", 4: b"dog"}), 1),
        # The model wrote the second picture's tokens itself: they show nothing.
        (content([1, 7, 7, 2, 7, 7, 3], {1: b"cat"}), 4),
        # The same tokens at other positions: a picture of another shape stood before.
        (content([1, 7, 7, 2, 7, 7, 3], {1: b"cat", 4: b"dog"}, positions=[0, 1, 2, 9, 10, 11, 12]), 3),
    ],
)
def test_two_prompts_share_what_tokens_positions_and_pictures_have_in_common(other, num_shared):
    assert PROMPT.shared_tokens(other) == other.shared_tokens(PROMPT) == num_shared


def test_a_position_that_differs_on_one_axis_ends_what_is_shared():
    position_ids = PROMPT.position_ids.copy()
    position_ids[2, 5] += 1
    assert PROMPT.shared_tokens(CacheContent(PROMPT.token_ids, position_ids, PROMPT.pictures, 7)) == 5


def test_the_first_tokens_keep_the_pictures_that_begin_there():
    assert PROMPT.first(5).pictures == ((1, b"cat"), (4, b"dog"))
    assert PROMPT.first(4).pictures == ((1, b"cat"),)
    assert (len(PROMPT.first(4)), PROMPT.first(4).num_prompt_tokens) == (4, 4)
    assert PROMPT.shared_tokens(PROMPT.first(5)) == 5


def test_slots_in_use_stay_close_together():
    slots = KvSlots(6)
    used: list[int] = []
    for _ in range(4):
        slot, _ = slots.acquire(content([1]), used)
        used.append(slot)
    assert sorted(used) == [0, 1, 2, 3]
    for slot in (1, 0):
        slots.release(slot, EMPTY)
    assert slots.acquire(content([1]), [2, 3])[0] in (1, 4)
    assert len(slots) == 3


def test_the_least_recently_used_of_equally_close_slots_goes():
    slots = KvSlots(3)
    for slot in (0, 1, 2):
        assert slots.acquire(content([slot]), [])[0] == slot
    for slot in (1, 0, 2):
        slots.release(slot, content([slot + 10]))
    assert [slots.acquire(content([99]), [])[0] for _ in range(3)] == [1, 0, 2]


def test_a_conversation_gets_its_slot_back_wherever_it_is():
    slots = KvSlots(4)
    conversations = {slot: content([slot, 20, 21, 22]) for slot in range(4)}
    for conversation in conversations.values():
        slots.acquire(conversation, [])
    for slot, conversation in conversations.items():
        slots.release(slot, conversation)
    assert slots.acquire(content([2, 20, 21, 22, 23]), [0]) == (2, 4)
    assert slots.num_kept_tokens(1) == 4


def test_a_common_system_message_costs_no_conversation_its_slot():
    slots = KvSlots(2)
    for _ in range(2):
        slots.acquire(content([0]), [])
    slots.release(0, content([1, 2]))
    slots.release(1, content([5, 6, 7, 8, 9, 10, 11]))
    # Two of seven tokens are the same; slot 0 shares nothing but is the older one.
    assert slots.acquire(content([5, 6, 30]), []) == (0, 0)


def test_the_same_question_again_takes_its_own_slot_however_long_the_answer_was():
    slots = KvSlots(2)
    for _ in range(2):
        slots.acquire(content([0]), [])
    slots.release(0, content([3]))
    long_answer = content([5, 6, 7, *range(20, 60)])
    slots.release(1, CacheContent(long_answer.token_ids, long_answer.position_ids, (), num_prompt_tokens=3))
    assert slots.acquire(content([5, 6, 7]), []) == (1, 3)
