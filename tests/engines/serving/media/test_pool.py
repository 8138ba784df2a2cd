import io
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.hostile_media import jpeg_of_scans, plain_ppm
from engines.serving.media import pool as pool_module
from engines.serving.media.channel import Job
from engines.serving.media.pool import MediaPool, MediaSettings
from engines.serving.media.turns import LARGE, SMALL, Cost
from export.errors import UserError
from export.processor.media.budget import read_budget
from export.processor.media.decode import LocalReader
from export.processor.media.limits import MediaLimits
from export.processor.settings import ImageSettings, VideoSettings
from tests.support.pictures import encoded, moving_frames, picture, video_file

LOCAL = LocalReader(ImageSettings(), VideoSettings())
SETTINGS = MediaSettings()


@pytest.fixture(scope="module")
def pool():
    with MediaPool(SETTINGS) as made:
        yield made


def reader(pool, seconds=60.0, is_cancelled=None, local=LOCAL):
    return pool.reader(local, time.monotonic() + seconds, is_cancelled)


def parent_of(pool):
    assert pool._parent is not None
    return pool._parent._process.pid


def test_one_process_decodes_many_videos_within_its_bound():
    video = video_file(moving_frames(30))
    expected = LOCAL.decode("video", video).frames
    with MediaPool(MediaSettings(num_workers=1, worker_memory_bytes=160 << 20)) as small:
        for _ in range(40):
            assert np.array_equal(reader(small).decode("video", video).frames, expected)


def slow_picture():
    """A few kilobytes that take a second or more."""
    file = io.BytesIO()
    Image.new("RGBA", (8000, 8000), (1, 2, 3, 100)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def slow():
    return slow_picture()


def test_pictures_and_videos_are_what_they_are_in_this_process(pool):
    ours = reader(pool)
    pictures = [encoded(picture(90, 60), "PNG"), encoded(picture(300, 200, seed=1), "JPEG")]
    assert ours.picture_sizes(pictures) == [(90, 60), (300, 200)]
    for one in pictures:
        assert np.array_equal(ours.decode("image", one).frames, LOCAL.decode("image", one).frames)
    video = video_file(moving_frames(30))
    assert np.array_equal(ours.decode("video", video).frames, LOCAL.decode("video", video).frames)
    frames = [encoded(picture(60, 60, seed=i), "PNG") for i in range(5)]
    assert np.array_equal(ours.decode("video", frames).frames, LOCAL.decode("video", frames).frames)
    assert ours.picture_sizes([]) == []


def test_a_parts_own_budget_reaches_the_process(pool):
    budget = read_budget("video", {"nframes": 6, "max_pixels": 60 * 784}, "a part")
    video = video_file(moving_frames(30))
    here, there = LOCAL.decode("video", video, budget), reader(pool).decode("video", video, budget)
    assert len(here.frames) == 6
    assert np.array_equal(here.frames, there.frames)
    assert here.seconds == there.seconds == (0, 0.5, 1, 1.5, 2, 2.5)


def test_what_is_wrong_with_a_file_is_said_as_in_this_process(pool):
    for kind, source in (("image", b"nothing"), ("video", b"nothing"), ("video", [b"nothing"])):
        with pytest.raises(UserError) as here:
            LOCAL.decode(kind, source)
        with pytest.raises(UserError) as there:
            reader(pool).decode(kind, source)
        assert str(there.value) == str(here.value)


def test_limits_of_a_request_reach_the_process(pool):
    local = replace(LOCAL, limits=MediaLimits(max_video_frames=10))
    with pytest.raises(UserError, match="more than 10 frames"):
        reader(pool, local=local).decode("video", video_file(moving_frames(30)))


def processes():
    return [
        child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE
    ]


def test_the_deadline_ends_the_work_and_the_next_request_is_served(pool, slow):
    before = {one.pid for one in processes()}
    start = time.monotonic()
    with pytest.raises(UserError, match=r"not decoded within 0\.\d s"):
        reader(pool, seconds=0.2).decode("image", slow)
    assert time.monotonic() - start < 0.7
    while len(now := {one.pid for one in processes()}) > len(before) and time.monotonic() - start < 5:
        time.sleep(0.02)
    assert len(now) == len(before)
    assert len(before - now) == 1  # the process that decoded is gone, another one is there
    assert reader(pool).decode("image", encoded(picture(60, 60), "PNG")).frames


def test_a_picture_has_a_time_of_its_own_below_the_requests(slow):
    settings = MediaSettings(num_workers=1, picture_seconds=0.2)
    with MediaPool(settings) as own, pytest.raises(UserError, match="within 0"):
        reader(own, seconds=60).decode("image", slow)


def test_a_client_that_leaves_stops_its_work(pool, slow):
    start = time.monotonic()
    with pytest.raises(UserError, match="cancelled by the client"):
        reader(pool, is_cancelled=lambda: time.monotonic() - start > 0.2).decode("image", slow)
    assert time.monotonic() - start < 0.7


def test_a_picture_beyond_the_memory_of_a_process_is_refused_by_that_and_harms_nobody(slow):
    with MediaPool(MediaSettings(num_workers=1, worker_memory_bytes=200 << 20)) as small:
        with pytest.raises(UserError, match="takes more than 200 MB to decode"):
            reader(small).decode("image", slow)
        assert reader(small).decode("image", encoded(picture(60, 60), "PNG")).frames


@pytest.mark.parametrize("victim", ["worker", "all"])
def test_processes_that_end_are_replaced(victim):
    content = encoded(picture(60, 60), "PNG")
    with MediaPool(MediaSettings(num_workers=1)) as own:
        parent = parent_of(own)
        ended = [one.pid for one in psutil.Process(parent).children()]
        for one in ended + ([parent] if victim == "all" else []):
            os.kill(one, signal.SIGKILL)
        time.sleep(0.1)
        assert reader(own).decode("image", content).frames


def test_a_process_that_dies_at_its_work_is_an_error_of_that_file_alone(pool, slow):
    def kill_soon():
        workers = {one: sum(one.cpu_times()[:2]) for one in psutil.Process(parent_of(pool)).children()}
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for one, before in workers.items():
                if sum(one.cpu_times()[:2]) > before + 0.05:
                    one.kill()
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_soon)
    killer.start()
    with pytest.raises(UserError, match="ended the process that decoded it"):
        reader(pool).decode("image", slow)
    killer.join()
    assert reader(pool).decode("image", encoded(picture(60, 60), "PNG")).frames


def test_nothing_is_left_after_the_end():
    own = MediaPool(SETTINGS)
    parent = parent_of(own)
    ended = [parent, *(one.pid for one in psutil.Process(parent).children())]
    own.close()
    deadline = time.monotonic() + 5
    while any(map(psutil.pid_exists, ended)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(psutil.pid_exists, ended))


def test_what_looks_small_and_is_not_is_decoded_among_the_large_ones(monkeypatch):
    """It is ended where it holds up the small ones, not refused."""
    content = plain_ppm(1000)  # a megapixel of numbers as text, not said to be slow here
    monkeypatch.setattr(pool_module, "SMALL_SECONDS", 0.05)
    job = Job("image", LOCAL, (len(content),))
    with MediaPool(SETTINGS) as own:
        sizes, turn = [], own._turns.turn

        def noted(cost, *rest):
            sizes.append(cost.size)
            return turn(cost, *rest)

        monkeypatch.setattr(own._turns, "turn", noted)
        frames = own.run(
            job, [content], Cost(0.01, 1 << 20), 0.0, time.monotonic() + 60, lambda: False
        ).frames
        assert frames is not None
        assert np.array_equal(frames, LOCAL.decode("image", content).frames)
    assert sizes == [SMALL, LARGE]


def test_a_process_of_large_pictures_steps_back_and_one_of_small_ones_does_not(slow):
    with MediaPool(MediaSettings(num_workers=2)) as own:
        ours = reader(own)
        ours.picture_sizes([slow])
        ours.decode("image", slow)
        content = encoded(picture(60, 60), "PNG")
        for _ in range(3):
            ours.decode("image", content)
        usual = psutil.Process().nice()
        niceness = {one.nice() for one in psutil.Process(parent_of(own)).children()}
        assert niceness == {usual, min(usual + 5, 19)}
        assert len(psutil.Process(parent_of(own)).children()) == 2


ATTACKS = {
    "a poster": slow_picture,
    "numbers as text": lambda: plain_ppm(2000),
    "a hundred scans": lambda: jpeg_of_scans(100, 2000),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_many_slow_requests_at_once_end_in_time_and_hold_up_no_small_picture(kind):
    """Twenty of them: each has its own error by its deadline, and small pictures go on meanwhile."""
    slow = ATTACKS[kind]()
    content = encoded(picture(90, 60), "PNG")
    with MediaPool(SETTINGS) as own:
        peak, ends, waits = [0], [], []
        is_over = threading.Event()

        def watch():
            while not is_over.is_set():
                with_parent = [psutil.Process(parent_of(own)), *processes()]
                peak[0] = max(
                    peak[0], sum(_rss(one) for one in {one.pid: one for one in with_parent}.values())
                )
                time.sleep(0.02)

        def attack():
            start = time.monotonic()
            with pytest.raises(UserError, match="not decoded within"):
                ours = reader(own, seconds=1.0)
                ours.picture_sizes([slow])
                while True:
                    ours.decode("image", slow)
            ends.append(time.monotonic() - start)

        threads = [threading.Thread(target=attack) for _ in range(20)] + [threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            start = time.monotonic()
            reader(own).decode("image", content)
            waits.append(time.monotonic() - start)
        for thread in threads[:-1]:
            thread.join()
        is_over.set()
        threads[-1].join()
    assert len(ends) == 20
    assert max(ends) < 1.5
    assert peak[0] < 1.5e9
    # None waits until a large one ends, a second from then; a busy machine may take its time for each.
    assert sorted(waits)[2] < 0.5


def _rss(process):
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def test_the_processes_take_no_module_from_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "PIL.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", ".", *sys.path])
    with MediaPool(MediaSettings(num_workers=1)) as own:
        assert reader(own).decode("image", encoded(picture(60, 60), "PNG")).frames
    assert not (tmp_path / "ran").exists()
