import numpy as np

from engines.runtime.vision.cache import EmbeddingCache

ROW = np.zeros((1, 4), np.float32)  # 16 bytes


def test_the_least_recently_used_picture_goes_first():
    cache = EmbeddingCache(48)
    for digest in (b"a", b"b", b"c"):
        cache.put(digest, ROW)
    assert cache.get(b"a") is ROW
    cache.put(b"d", ROW)
    assert [cache.get(digest) is ROW for digest in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert (len(cache), cache.num_bytes) == (3, 48)


def test_a_large_picture_makes_room_for_itself_and_one_over_the_budget_is_not_kept():
    cache = EmbeddingCache(48)
    for digest in (b"a", b"b", b"c"):
        cache.put(digest, ROW)
    cache.put(b"large", np.zeros((2, 4), np.float32))
    assert [cache.get(digest) is None for digest in (b"a", b"b", b"c", b"large")] == [
        True,
        True,
        False,
        False,
    ]
    cache.put(b"too large", np.zeros((4, 4), np.float32))
    assert cache.get(b"too large") is None
    assert cache.num_bytes == 48


def test_a_picture_is_counted_once():
    cache = EmbeddingCache(48)
    cache.put(b"a", ROW)
    cache.put(b"a", ROW)
    assert cache.num_bytes == 16
