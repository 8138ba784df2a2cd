"""Kernels that TensorRT-RTX compiled are kept in the user's cache, and whatever is wrong with them is a warning."""

import gc
import json
import logging
import os
from pathlib import Path

import pytest

from engines.backends.tensorrt.log import RUN_LOG
from engines.backends.tensorrt.run import runtime_cache
from engines.backends.tensorrt.run.runtime_cache import cache_path, with_runtime_cache
from engines.backends.tensorrt.run.session import TensorRtDecoder, TensorRtVision
from engines.runtime.vision.dealt import DealtVision
from engines.session import Engine
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.checkpoint.config import load_config
from tests.engines.backends.tensorrt.fake_runtime import FakeEngine, HostDevice, fake_bindings
from tests.support.cases import CASES, make_batch
from tests.support.sessions import encode

LIMITS = Limits(
    max_patches=64, max_segments=2, max_batch=4, max_prompt_tokens=16, max_context=192, max_logits_tokens=5
)
CASE = {case.name: case for case in CASES}


class FakeCache:
    """An `IRuntimeCache` of one GPU."""

    def __init__(self, gpu):
        self.gpu, self.kernels = gpu, set()
        self.is_broken = False

    def deserialize(self, blob):
        try:
            found = json.loads(blob)
        except ValueError:
            found = {}
        if found.get("gpu") != self.gpu:
            RUN_LOG.add_error("[runtimeCache.cpp] Error Code 3: the cache is of another environment")
            return False
        self.kernels = set(found["kernels"])
        return True

    def serialize(self):
        if self.is_broken:
            raise RuntimeError("serialize failed")
        return json.dumps({"gpu": self.gpu, "kernels": sorted(self.kernels)}).encode()


class FakeConfig:
    """An `IRuntimeConfig`."""

    def __init__(self, cache, *, takes_cache=True):
        self.cache, self.takes_cache = cache, takes_cache
        self.is_set, self.strategy = False, "static"

    def create_runtime_cache(self):
        return self.cache

    def set_runtime_cache(self, cache):
        assert cache is self.cache
        self.is_set = self.takes_cache
        return self.takes_cache

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class CompilingEngine(FakeEngine):
    """Compiles a kernel for each context that it has none for in the cache."""

    gpu = "GPU of SM89"
    takes_cache = True
    num_compiled = 0

    def create_runtime_config(self):
        self.config = FakeConfig(FakeCache(self.gpu), takes_cache=self.takes_cache)
        return self.config

    def create_execution_context(self, strategy):
        if strategy == "user managed":  # without a cache
            self.num_compiled += 1
            return super().create_execution_context(strategy)
        assert strategy is self.config
        assert strategy.is_set
        kernel = f"kernel {len(self.contexts)}"
        self.num_compiled += kernel not in strategy.cache.kernels
        strategy.cache.kernels.add(kernel)
        return super().create_execution_context(strategy.strategy)


class Start:
    """What one process does: loads an engine, makes its session, asks it once and ends."""

    def __init__(self, directory, graph="vision", gpu="GPU of SM89", *, takes_cache=True):
        bundle, config, self.device = open_bundle(directory), load_config(directory), HostDevice()
        self.engine = CompilingEngine(self.device, bundle.graph(graph), graph, config, LIMITS, "float32")
        self.engine.gpu, self.engine.takes_cache = gpu, takes_cache
        self.config, self.trt, self.graph = config, fake_bindings(), graph
        # Nothing but the session may hold the engine: not even a frame that an error keeps.
        self.session = self._vision() if graph == "vision" else self._decoder()
        if graph == "vision":
            encode(self.session, make_batch(CASE["one_image"], config), config.decoder.hidden_size)

    def _vision(self):
        return TensorRtVision(self.trt, self._cached(), self.device, self.config)

    def _decoder(self):
        return TensorRtDecoder(self.trt, [self._cached()], [self.device], self.config, 4)

    def _cached(self):
        return with_runtime_cache(self.trt, self.engine, self.device, "key", self.graph, 89)

    def end(self):
        self.session = None
        gc.collect()
        return self.engine.num_compiled


def path_of(graph="vision") -> Path:
    return cache_path("key", graph, 89, fake_bindings().__version__)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_a_second_start_compiles_nothing_and_writes_nothing(bundle_of, home, graph, caplog):
    first = Start(bundle_of("float32"), graph)
    assert not home.exists()  # only what was compiled is written, and when the session ends
    assert first.end() == len(first.engine.contexts) > 0
    path = path_of(graph)
    assert path.is_relative_to(home)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    written = path.stat().st_mtime_ns, path.stat().st_ino
    assert Start(bundle_of("float32"), graph).end() == 0
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_kernels_are_kept_before_the_end_where_that_is_asked_for(bundle_of, graph):
    start = Start(bundle_of("float32"), graph)
    session = DealtVision([start.session, start.session]) if graph == "vision" else start.session
    Engine(session, start.session).keep_compiled()
    written = path_of(graph).stat().st_ino
    assert Start(bundle_of("float32"), graph).end() == 0
    session = None
    start.end()  # nothing new
    assert path_of(graph).stat().st_ino == written


def test_kernels_that_come_later_are_added(bundle_of):
    Start(bundle_of("float32")).end()
    second = Start(bundle_of("float32"))
    second.engine.config.cache.kernels.add("one of another shape")
    second.end()
    assert json.loads(path_of().read_bytes())["kernels"] == ["kernel 0", "one of another shape"]


def of_another_gpu(path):
    path.write_text(json.dumps({"gpu": "GPU of SM80", "kernels": ["kernel 0", "kernel 1", "kernel 2"]}))


def torn(path):
    path.write_bytes(path.read_bytes()[:9])


def too_large(path):
    os.truncate(path, runtime_cache.MAX_FILE_BYTES + 1)


def a_link(path):
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def of_others(path):
    path.chmod(0o666)


def in_a_directory_of_others(path):
    path.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("harm", "words", "is_mended"),
    [
        (of_another_gpu, "the cache is of another environment", True),
        (torn, "the cache is of another environment", True),
        (too_large, "is larger than", True),
        (a_link, "outside of its directory", True),
        (of_others, "others can write it", True),
        (in_a_directory_of_others, "others can write it", False),
    ],
)
def test_a_cache_that_is_not_to_be_believed_is_a_warning_and_compiled_anew(
    bundle_of, caplog, harm, words, is_mended
):
    path = path_of()
    Start(bundle_of("float32")).end()
    harm(path)
    assert Start(bundle_of("float32")).end() == 1
    [told] = [record.message for record in caplog.records if record.name == runtime_cache.__name__]
    assert "compiled anew" in told
    assert words in told
    assert RUN_LOG.take() == "it gives no reason"  # what is told here is no later error's reason
    assert Start(bundle_of("float32")).end() == (0 if is_mended else 1)


def test_a_place_that_cannot_be_written_is_a_warning(bundle_of, home, caplog):
    home.write_text("a file")
    assert Start(bundle_of("float32")).end() == 1
    assert any("not kept for the next start" in record.message for record in caplog.records)


def test_a_library_that_fails_at_its_cache_is_a_warning(bundle_of, caplog):
    start = Start(bundle_of("float32"))
    start.engine.config.cache.is_broken = True
    assert start.end() == 1
    assert "serialize failed" in caplog.text
    assert not path_of().exists()
    assert Start(bundle_of("float32"), takes_cache=False).end() == 1
    assert "takes no runtime cache" in caplog.text


def test_what_is_larger_than_the_bound_is_not_written(bundle_of, monkeypatch, caplog):
    monkeypatch.setattr(runtime_cache, "MAX_FILE_BYTES", 8)
    Start(bundle_of("float32")).end()
    assert not path_of().exists()
    assert "of 8 at most" in caplog.text


def test_the_files_written_longest_ago_make_room(bundle_of, monkeypatch):
    path = path_of()
    path.parent.mkdir(parents=True, mode=0o700)
    others = [path.with_name(f"{name}.cache") for name in ("new", "old", "older")]
    for age, other in enumerate(others):
        other.write_bytes(bytes(100))
        os.utime(other, (1000 - age, 1000 - age))
    path.with_name("note.txt").write_bytes(bytes(1000))
    monkeypatch.setattr(runtime_cache, "MAX_DIRECTORY_BYTES", 200)
    Start(bundle_of("float32")).end()
    assert sorted(other.name for other in path.parent.iterdir()) == sorted(
        [path.name, "new.cache", "note.txt"]
    )


def test_a_relative_cache_directory_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of().parent == tmp_path / ".cache" / "qv-export" / "rtx"
