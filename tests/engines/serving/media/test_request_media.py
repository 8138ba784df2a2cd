import threading
import time

import pytest

from engines.serving.limits import RequestLimits
from engines.serving.media.request_media import RequestMedia
from export.errors import UserError


class SlowFetcher:
    """Answers after a while with as many bytes as asked, and counts how many it has to do at once."""

    def __init__(self, num_bytes=10, seconds=0.1, broken=()):
        self.num_bytes, self.seconds, self.broken = num_bytes, seconds, broken
        self.asked: list[str] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    def fetch(self, url, *, deadline=None, is_cancelled=None):
        with self._lock:
            self.asked.append(url)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        if url in self.broken:
            raise UserError(f"{url} is not there.")
        return url.encode().ljust(self.num_bytes, b".")


def picture(number):
    address = f"http://here/{number}"
    return (
        {"type": "image", "image": address}
        if number % 2
        else {"type": "image_url", "image_url": {"url": address}}
    )


def resolved(fetcher, content, **limits):
    media = RequestMedia([], RequestLimits(**limits), fetcher)
    messages = [{"role": "user", "content": content}]
    media.fetch_together(messages)
    return [media.resolved(message) for message in messages]


def test_pictures_of_one_request_are_fetched_together_and_stand_where_they_were_asked():
    fetcher = SlowFetcher()
    started = time.monotonic()
    [message] = resolved(fetcher, [picture(number) for number in range(12)])
    assert time.monotonic() - started < 0.9  # one after another: 1.2 s
    assert fetcher.most_at_once == 4
    assert [part["image"].rstrip(b".") for part in message["content"]] == [
        f"http://here/{number}".encode() for number in range(12)
    ]
    assert len(fetcher.asked) == 12


def test_a_picture_that_comes_twice_is_fetched_once():
    fetcher = SlowFetcher()
    resolved(fetcher, [picture(1), picture(3), picture(1)])
    assert sorted(fetcher.asked) == ["http://here/1", "http://here/3"]


def test_an_address_in_a_text_is_not_fetched():
    fetcher = SlowFetcher()
    resolved(fetcher, [{"type": "text", "text": "http://here/1"}, {"type": "text", "text": "http://here/2"}])
    resolved(fetcher, "http://here/3")
    assert fetcher.asked == []


def test_no_more_is_fetched_than_a_request_may_hold():
    fetcher = SlowFetcher(num_bytes=1000, seconds=0)
    with pytest.raises(UserError, match="at most 5000 bytes together"):
        resolved(fetcher, [picture(number) for number in range(30)], max_media_bytes=5000)
    assert len(fetcher.asked) <= 9
    fetcher = SlowFetcher(seconds=0)
    with pytest.raises(UserError, match="at most 3 of type image"):
        resolved(fetcher, [picture(number) for number in range(30)], max_pictures=3, max_videos=1)
    assert len(fetcher.asked) <= 4


def test_what_is_not_there_is_told_as_if_it_were_fetched_alone():
    fetcher = SlowFetcher(seconds=0, broken=("http://here/2",))
    with pytest.raises(UserError, match="http://here/2 is not there"):
        resolved(fetcher, [picture(number) for number in range(20)])
    assert len(fetcher.asked) <= 4
