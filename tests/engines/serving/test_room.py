import threading
import time

import pytest

from engines.serving.room import FREE_BYTES, SMALL_BYTES, NoRoomError, Room

MB = 1 << 20


def never():
    return False


def test_all_requests_together_hold_no_more_than_there_is_room_for():
    room = Room(10 * MB)
    with room.held() as first, room.held() as second:
        first.grow_to(6 * MB)
        second.grow_to(3 * MB)
        with pytest.raises(NoRoomError, match="Try again later"):
            second.grow_to(6 * MB)
    assert room.num_bytes == 0
    with room.held() as again:
        again.grow_to(10 * MB)


def test_one_request_alone_may_be_larger_than_the_room():
    room = Room(MB)
    with room.held() as held:
        held.grow_to(50 * MB)


def test_a_small_request_finds_room_where_large_ones_hold_all():
    room = Room(2 * MB)
    with room.held() as large, room.held() as text, room.held() as small:
        large.grow_to(2 * MB + FREE_BYTES)
        text.grow_to(FREE_BYTES)
        small.grow_to(SMALL_BYTES)
        with pytest.raises(NoRoomError):
            small.grow_to(SMALL_BYTES + 1)


def test_small_requests_are_bounded_too():
    room = Room(2 * MB)
    helds = [room.held() for _ in range(100)]
    opened = [held.__enter__() for held in helds]
    with pytest.raises(NoRoomError):
        for held in opened:
            held.grow_to(SMALL_BYTES)
    assert room.num_bytes <= 70 * MB


def test_a_body_is_gone_from_the_room_once_it_is_taken():
    room = Room(10 * MB)
    with room.held() as held:
        assert [held.add(bytes(MB)) for _ in range(3)] == [MB, 2 * MB, 3 * MB]
        assert held.num_bytes == 3 * MB
        assert len(held.take_body()) == 3 * MB
        assert held.num_bytes == 0
        assert room.num_bytes == 3 * MB - FREE_BYTES  # what was read of it is not decoded yet
        held.give_back()
        assert room.num_bytes == 0


def test_one_large_request_is_read_at_a_time_and_small_ones_pass():
    room, order, is_read = Room(10 * MB), [], threading.Event()

    def read(name, num_bytes):
        with room.lane(num_bytes, 10, never):
            order.append(name)
            if name == "first":
                is_read.wait(5)

    first = threading.Thread(target=read, args=("first", 2 * MB))
    second = threading.Thread(target=read, args=("second", 2 * MB))
    first.start()
    time.sleep(0.05)
    second.start()
    read("small", SMALL_BYTES)
    assert order == ["first", "small"]
    is_read.set()
    first.join()
    second.join()
    assert order == ["first", "small", "second"]


@pytest.mark.parametrize("why", ["deadline", "client"])
def test_who_waits_too_long_to_be_read_or_leaves_holds_up_nobody(why):
    room = Room(10 * MB)
    begin = time.monotonic()
    is_cancelled = (lambda: time.monotonic() - begin > 0.1) if why == "client" else never
    with (
        room.lane(2 * MB, 1, never),
        pytest.raises(NoRoomError),
        room.lane(2 * MB, 0.1 if why == "deadline" else 10, is_cancelled),
    ):
        pass
    assert time.monotonic() - begin < 1
    with room.lane(2 * MB, 0, never):
        pass
