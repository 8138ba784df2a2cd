"""What is measured of an engine: sizes within its limits, and nothing that would take too long."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backends.ceilings import Ceiling
from engines.bench import graphs
from engines.bench.graphs import Bench
from engines.bench.report import BenchRow, LeftOut
from engines.bench.sampling import Effort
from engines.bench.sizes import image_sizes, lengths_up_to
from engines.session import Engine
from engines.sizing.work import decode_bytes
from export.processor.processor import Processor
from export.processor.settings import ImageSettings
from tests.support.serve import ROOT


class Vision:
    def __init__(self, seconds_per_patch=0.0):
        self.calls = []
        self._seconds = seconds_per_patch

    def encode(self, inputs):
        self.calls.append(len(inputs.patches))
        time.sleep(self._seconds * len(inputs.patches))
        return np.zeros((len(inputs.patches) // 4, 4), np.float32)


class Decoder:
    num_slots, capacity = 4, 512

    def __init__(self):
        self.calls = []

    def forward(self, first_slot, inputs):
        batch, num_tokens = inputs.token_ids.shape
        assert first_slot + batch <= self.num_slots
        assert int(inputs.kv_lengths.max()) <= self.capacity
        assert (inputs.kv_lengths == inputs.write_index + num_tokens).all()
        self.calls.append((batch, num_tokens, int(inputs.kv_lengths[0])))
        return np.zeros((batch, 1, 8), np.float32)


@pytest.fixture(scope="module")
def processor():
    return Processor.from_directory(ROOT / "models" / "qwen2-vl-tiny")


def bench_of(processor, vision=None, effort=None, **changes):
    bundle: Any = SimpleNamespace(processor=processor, config=processor.config)
    values = {
        "num_slots": 4,
        "capacity": 512,
        "max_patches": 256,
        "max_prompt_tokens": 128,
        "value_bytes": 4,
        "ceilings": (),
        **changes,
    }
    return Bench(bundle, Engine(vision or Vision(), Decoder()), effort=effort or Effort(seconds=0), **values)


def test_ladders_grow_fourfold_up_to_the_limit():
    assert lengths_up_to(8, 1) == [1, 4, 8]
    assert lengths_up_to(2048, 128) == [128, 512, 2048]
    assert lengths_up_to(1, 1) == [1]
    assert lengths_up_to(20, 128) == [20]


def test_pictures_end_where_the_processor_makes_them_smaller():
    sizes = image_sizes(ImageSettings(max_pixels=1280 * 28 * 28))
    assert [size.num_patches for size in sizes] == [256, 1024, 4096, sizes[-1].num_patches]
    assert 4096 < sizes[-1].num_patches <= 5120


def test_pictures_beyond_the_engine_are_left_out_by_name(processor):
    bench = bench_of(processor)
    found = list(graphs.vision(bench))
    measured, left = (
        [one for one in found if isinstance(one, BenchRow)],
        [one for one in found if isinstance(one, LeftOut)],
    )
    assert [row.case for row in measured] == ["224 x 224 pixels, 256 patches"]
    assert left
    assert all("max_patches, 256" in one.reason for one in left)
    assert max(bench.engine.vision.calls) == 256


def test_prompts_and_steps_stay_within_slots_and_context(processor):
    bench = bench_of(processor)
    rows = [*graphs.prefill_speed(bench), *graphs.decode(bench)]
    assert [row.case for row in rows] == [
        "32 tokens",
        "128 tokens",
        *(f"batch {batch}, context {context}" for batch in (1, 4) for context in (128, 512)),
    ]
    assert set(bench.engine.decoder.calls) == {
        (1, 32, 32),
        (1, 128, 128),
        *((batch, 1, context) for batch in (1, 4) for context in (128, 512)),
    }


def test_a_call_that_would_take_too_long_is_left_out_and_not_made(processor):
    vision = Vision(seconds_per_patch=1e-5)
    bench = bench_of(processor, vision, Effort(seconds=0, longest_call_seconds=0.005), max_patches=16_384)
    found = list(graphs.vision(bench))
    assert [type(one) for one in found] == [BenchRow, LeftOut]
    assert "would take about" in getattr(found[1], "reason", "")
    assert max(vision.calls) == 256


def test_a_rate_is_a_share_of_the_measured_limit(processor):
    bench = bench_of(processor, ceilings=(Ceiling("copy", 1e9, ""), Ceiling("matmul", 2e9, "")))
    row, prompt, picture = (
        next(one for one in section(bench) if isinstance(one, BenchRow))
        for section in (graphs.decode, graphs.prefill_speed, graphs.preprocessing)
    )
    assert row.share_of == "copy"
    seconds = row.median / 1e3
    assert row.rate == pytest.approx(1 / seconds)
    assert row.share == pytest.approx(decode_bytes(processor.config, 4, 1, 128) / seconds / 1e9)
    assert prompt.share_of == "matmul"
    assert picture.share is None
