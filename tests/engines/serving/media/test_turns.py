import threading
import time

import pytest

from engines.serving.media import turns as turns_module
from engines.serving.media.turns import Cost, NoTurnError, Turns

SMALL = Cost(0.01, 100)
LARGE = Cost(1.0, 100)
POSTER = Cost(1.0, 100, turns_module.LARGE)
FILM = Cost(2.0, 100, turns_module.FILM)


def never():
    return False


class Client(threading.Thread):
    """Takes a turn, says so, and holds it until it is let go."""

    def __init__(self, turns, cost, log, name, spent=0.0):
        super().__init__(name=name)
        self.turns, self.cost, self.log, self.spent = turns, cost, log, spent
        self.may_end = threading.Event()

    def run(self):
        with self.turns.turn(self.cost, self.spent, time.monotonic() + 20, never):
            self.log.append(self.name)
            self.may_end.wait(20)


def started(*clients):
    for client in clients:
        client.start()
        time.sleep(0.05)
    return clients


def end(*clients):
    for client in clients:
        client.may_end.set()
    for client in clients:
        client.join()


def test_no_more_run_at_once_than_there_are_places():
    turns = Turns(2, 1000)
    log: list[str] = []
    clients = started(*(Client(turns, SMALL, log, str(i)) for i in range(3)))
    assert log == ["0", "1"]
    end(clients[0])
    time.sleep(0.3)
    assert log == ["0", "1", "2"]
    end(*clients)


def test_a_small_job_goes_before_large_ones_that_came_earlier():
    turns = Turns(1, 1000)
    log: list[str] = []
    clients = started(
        Client(turns, SMALL, log, "first"),
        Client(turns, LARGE, log, "large"),
        Client(turns, SMALL, log, "small"),
    )
    end(clients[0])
    time.sleep(0.3)
    assert log == ["first", "small"]
    end(*clients)
    assert log == ["first", "small", "large"]


def test_a_request_that_had_many_turns_lets_another_one_go_first():
    turns = Turns(1, 1000)
    log: list[str] = []
    clients = started(
        Client(turns, SMALL, log, "first"),
        Client(turns, SMALL, log, "tenth of one", spent=3.0),
        Client(turns, SMALL, log, "first of another"),
    )
    end(clients[0])
    time.sleep(0.3)
    assert log == ["first", "first of another"]
    end(*clients)


def test_films_leave_a_place_to_pictures():
    turns = Turns(2, 1000)
    log: list[str] = []
    clients = started(
        *(Client(turns, FILM, log, f"film {i}") for i in range(3)), Client(turns, SMALL, log, "picture")
    )
    assert log == ["film 0", "picture"]
    end(clients[-1])
    time.sleep(0.3)
    assert log == ["film 0", "picture"]
    end(clients[0])
    time.sleep(0.3)
    assert log[2:] == ["film 1"]
    end(*clients)


def test_pixels_at_once_are_bounded_and_one_alone_always_goes():
    turns = Turns(4, 150)
    log: list[str] = []
    clients = started(*(Client(turns, SMALL, log, str(i)) for i in range(2)))
    assert log == ["0"]
    end(*clients)
    [huge] = started(Client(turns, Cost(1.0, 1_000_000), log, "huge"))
    assert log == ["0", "1", "huge"]
    end(huge)


def test_a_large_one_is_not_passed_for_ever():
    turns = Turns(2, 150)
    log: list[str] = []
    [running, large] = started(
        Client(turns, SMALL, log, "running"), Client(turns, Cost(0.5, 150), log, "large")
    )
    time.sleep(1.2)
    [small] = started(Client(turns, Cost(0.01, 10), log, "small"))
    time.sleep(0.2)
    assert log == ["running"]
    end(running)
    time.sleep(0.3)
    assert log == ["running", "large"]
    end(large, small)


@pytest.mark.parametrize("why", ["deadline", "client"])
def test_who_waits_too_long_or_leaves_holds_up_nobody(why):
    turns = Turns(1, 1000)
    log: list[str] = []
    [running] = started(Client(turns, SMALL, log, "running"))
    begin = time.monotonic()
    is_cancelled = (lambda: time.monotonic() - begin > 0.2) if why == "client" else never
    with (
        pytest.raises(NoTurnError),
        turns.turn(SMALL, 0, begin + (0.2 if why == "deadline" else 20), is_cancelled),
    ):
        pass
    assert time.monotonic() - begin < 0.6
    end(running)
    with turns.turn(SMALL, 0, time.monotonic() + 1, never):
        pass


def test_of_three_places_films_leave_two_and_large_pictures_one():
    turns = Turns(3, 1000)
    log: list[str] = []
    films = started(*(Client(turns, FILM, log, f"film {i}") for i in range(2)))
    posters = started(*(Client(turns, POSTER, log, f"poster {i}") for i in range(2)))
    assert log == ["film 0", "poster 0"]
    [small] = started(Client(turns, SMALL, log, "small"))
    assert log[2:] == ["small"]
    end(small)
    time.sleep(0.3)
    assert log[3:] == []
    end(*films, *posters)
    assert sorted(log[3:]) == ["film 1", "poster 1"]


@pytest.mark.parametrize("cost", [SMALL, POSTER, FILM])
def test_with_one_place_everything_goes_in_its_turn(cost):
    turns = Turns(1, 1000)
    for _ in range(2):
        with turns.turn(cost, 0, time.monotonic() + 1, never):
            pass
