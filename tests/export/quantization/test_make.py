"""Quantized layers of a checkpoint, made for conversations or each value by itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.checkpoint.tensors import open_checkpoint
from export.errors import UserError
from export.processor.processor import Processor
from export.quantization.calibration.error_feedback import relative_error
from export.quantization.calibration.statistics import input_statistics
from export.quantization.make import Part, check_wishes, quantize_checkpoint
from export.quantization.report import read_report
from export.weights.values import read_values

TINY = Path("models/qwen2-vl-tiny")


@pytest.fixture(scope="module")
def prompts():
    processor = Processor.from_directory(TINY)
    images = [Image.effect_noise((84 + 14 * i, 56), 60 + i).convert("RGB") for i in range(4)]
    return [
        processor.inputs_from_messages([{"role": "user", "content": [{"type": "image", "image": image}]}])
        for image in images
    ]


def quantized(directory, wishes, prompts=None):
    directory.mkdir()
    source = open_checkpoint(TINY)
    checkpoint, report = quantize_checkpoint(
        source, wishes, "bfloat16", directory, copy=True, report=lambda *_: None, conversations=prompts
    )
    assert report is not None
    report.write(directory)
    return checkpoint


def errors_of(checkpoint, seen):
    source = open_checkpoint(TINY)
    return {
        name: relative_error(
            linear.read(),
            read_values(source.tensors[name]).astype(np.float32),
            seen[name].second_moments if name in seen else None,
        )
        for name, linear in checkpoint.linears.items()
    }


def test_calibrated_products_are_nearer_in_every_part_and_the_head_is_as_it_was(tmp_path, prompts):
    schemes: dict[Part, str] = {"decoder": "int4", "vision": "int8-weights", "head": "int8-weights"}
    nearest = quantized(tmp_path / "nearest", check_wishes(schemes))
    better = quantized(tmp_path / "better", check_wishes(schemes, is_calibrated=True), prompts)
    assert better.linears.keys() == nearest.linears.keys()
    wanted = [name for name in nearest.linears if "embed_tokens" not in name]
    seen = dict(input_statistics(open_checkpoint(TINY), prompts, wanted, tmp_path, lambda _: None))
    before, after = (errors_of(checkpoint, seen) for checkpoint in (nearest, better))
    assert all(after[name] < before[name] for name in wanted)
    assert np.median([after[name] / before[name] for name in wanted]) < 0.3
    assert after["model.embed_tokens.weight"] == before["model.embed_tokens.weight"]


def test_the_same_conversations_give_the_same_bytes(tmp_path, prompts):
    wishes = check_wishes({"decoder": "int4"}, is_calibrated=True)
    files = [quantized(tmp_path / name, wishes, prompts).weight_files[-1] for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_static_scale_holds_the_largest_input_that_was_seen(tmp_path, prompts):
    wishes = check_wishes({"vision": "fp8"}, is_calibrated=True, static_inputs=True)
    checkpoint = quantized(tmp_path / "static", wishes, prompts)
    name = "visual.blocks.1.mlp.fc2.weight"
    seen = dict(input_statistics(open_checkpoint(TINY), prompts, [name], tmp_path, lambda _: None))
    assert checkpoint.linears[name].activations == "static"
    assert checkpoint.linears[name].read().activations == pytest.approx(seen[name].largest / 448, rel=2**-8)


@pytest.mark.parametrize(
    ("schemes", "options", "problem"),
    [
        ({}, {"is_calibrated": True}, "--calibrate says what the layers"),
        ({"head": "int4"}, {"is_calibrated": True}, "--calibrate says what the layers"),
        ({"decoder": "int8"}, {"static_inputs": True}, "found by the conversations of --calibrate"),
        ({"decoder": "int4"}, {"is_calibrated": True, "static_inputs": True}, "which int8 and fp8 have"),
    ],
)
def test_wishes_that_do_not_go_together_are_refused_by_name(schemes, options, problem):
    with pytest.raises(UserError, match=problem):
        check_wishes(schemes, **options)


def test_the_worst_stay_as_they_are_and_the_others_keep_their_codes(tmp_path, prompts):
    plain = quantized(tmp_path / "all", check_wishes({"decoder": "int4", "head": "int8-weights"}))
    some = quantized(
        tmp_path / "some", check_wishes({"decoder": "int4", "head": "int8-weights"}, keep_worst=0.05), None
    )
    report = read_report(tmp_path / "some")
    assert report is not None
    kept = {product.name for product in report.products if product.is_kept}
    assert kept == plain.linears.keys() - some.linears.keys()
    assert kept <= some.tensors.keys()
    assert 0 < report.kept_share <= 0.05
    assert "embed_tokens" not in str(kept)
    blocks = [product for product in report.worst if "embed_tokens" not in product.name]
    assert blocks[0].name in kept
    for name, linear in some.linears.items():
        np.testing.assert_array_equal(linear.read().codes, plain.linears[name].read().codes)
    source = open_checkpoint(TINY)
    for name in kept:
        np.testing.assert_array_equal(read_values(some.tensors[name]), read_values(source.tensors[name]))


def test_an_error_is_that_of_the_product_where_inputs_were_seen(tmp_path, prompts):
    checkpoint = quantized(tmp_path / "seen", check_wishes({"vision": "int4"}, is_calibrated=True), prompts)
    report = read_report(tmp_path / "seen")
    assert report is not None
    names = [product.name for product in report.products]
    seen = dict(input_statistics(open_checkpoint(TINY), prompts, names, tmp_path, lambda _: None))
    expected = errors_of(checkpoint, seen)
    for product in report.products:
        assert product.is_seen
        assert product.error == pytest.approx(expected[product.name] ** 0.5, rel=1e-5)
