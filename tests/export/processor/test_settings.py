import json

import pytest

from export.errors import UserError
from export.processor.settings import (
    ImageSettings,
    VideoSettings,
    image_settings_from_json,
    load_settings,
    video_settings_from_json,
)


def write(directory, **files):
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def test_a_checkpoint_that_says_nothing_has_transformers_defaults(tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image, video = load_settings(tmp_path)
    theirs = Qwen2VLImageProcessorPil()
    assert (image.min_pixels, image.max_pixels) == (theirs.size["shortest_edge"], theirs.size["longest_edge"])
    assert image.image_mean == tuple(theirs.image_mean)
    assert image.image_std == tuple(theirs.image_std)
    assert image.rescale_factor == theirs.rescale_factor
    assert (image.patch_size, image.temporal_patch_size, image.merge_size) == (14, 2, 2)
    assert image.resample == theirs.resample
    assert video == VideoSettings()


def test_what_transformers_saves_is_read_back(tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 6272, "longest_edge": 627200}
    Qwen2VLImageProcessorPil(size=size, image_mean=[0.5, 0.4, 0.3]).save_pretrained(tmp_path)
    image, video = load_settings(tmp_path)
    assert image == ImageSettings(min_pixels=6272, max_pixels=627200, image_mean=(0.5, 0.4, 0.3))
    # The budgets of a frame are the paper's; the normalization is the checkpoint's.
    assert (video.frame.min_pixels, video.frame.max_pixels) == (100352, 602112)
    assert video.frame.image_mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    "content",
    [
        {"min_pixels": 1000, "max_pixels": 2000},
        {"size": {"shortest_edge": 1000, "longest_edge": 2000}},
        {"size": {"min_pixels": 1000, "max_pixels": 2000}},
        {"size": {"shortest_edge": 1000, "longest_edge": 2000}, "min_pixels": 1000, "max_pixels": 2000},
        {"size": {"shortest_edge": 1000, "longest_edge": 2000}, "min_pixels": None, "max_pixels": None},
    ],
)
def test_every_spelling_of_the_budgets_is_read(content):
    settings = image_settings_from_json(content)
    assert (settings.min_pixels, settings.max_pixels) == (1000, 2000)


def test_the_composite_file_of_transformers_5_wins(tmp_path):
    write(
        tmp_path,
        processor_config={
            "image_processor": {"max_pixels": 5000},
            "video_processor": {"max_frames": 8, "fps": 1},
        },
        preprocessor_config={"max_pixels": 7000},
        video_preprocessor_config={"max_frames": 10},
    )
    image, video = load_settings(tmp_path)
    assert image.max_pixels == 5000
    assert (video.max_frames, video.fps) == (8, 1.0)


def test_a_video_file_overrides_the_paper(tmp_path):
    sizes = {"shortest_edge": 3136, "longest_edge": 12845056}
    write(
        tmp_path,
        preprocessor_config={"image_std": 0.5},
        video_preprocessor_config={"size": sizes, "do_sample_frames": False, "video_processor_type": "x"},
    )
    _, video = load_settings(tmp_path)
    assert (video.frame.min_pixels, video.frame.max_pixels) == (3136, 12845056)
    assert video.frame.image_std == (0.5, 0.5, 0.5)
    assert video.max_tokens == 16384


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"min_pixels": 1000, "size": {"shortest_edge": 2000}},
            "min_pixels 1000, size.shortest_edge 2000 contradict",
        ),
        ({"min_pixels": 5000, "max_pixels": 4000}, "min_pixels 5000 is above max_pixels 4000"),
        ({"min_pixels": 0}, "min_pixels must be an integer of at least 1, found 0"),
        ({"max_pixels": "many"}, "max_pixels must be an integer"),
        ({"max_pixels": True}, "max_pixels must be an integer"),
        ({"size": {"height": 10, "width": 10}}, "size must hold shortest_edge and longest_edge"),
        ({"size": 224}, "size must hold"),
        ({"do_resize": False}, "do_resize is False, only True is supported"),
        ({"do_pad": True}, "do_pad is True, only False is supported"),
        ({"resample": 9}, "resample must be at most 5, found 9"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std must be three numbers above zero"),
        ({"rescale_factor": float("nan")}, "rescale_factor must be a positive number"),
        ({"sharpen": 3}, "unknown settings sharpen"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_an_error(content, message):
    with pytest.raises(UserError, match=message):
        image_settings_from_json(content)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        image_settings_from_json({"patch_size": -1, "resample": "soft", "colour": 1})
    assert str(caught.value).count("\n- ") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"min_frames": 9, "max_frames": 8}, "min_frames 9 is above max_frames 8"),
        ({"min_frames": 1, "max_frames": 1}, "max_frames must be at least 2"),
        ({"max_frames": 20000}, "max_frames must be at most 16384"),
        ({"patch_size": 16}, "patch_size differs"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"num_frames": 16}, "unknown settings num_frames"),
    ],
)
def test_a_video_setting_that_cannot_be_followed_is_an_error(content, message):
    with pytest.raises(UserError, match=message):
        video_settings_from_json(content, ImageSettings())


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json cannot be read"):
        load_settings(tmp_path)
    write(tmp_path, processor_config={"image_processor": 3})
    with pytest.raises(UserError, match="image_processor must be an object"):
        load_settings(tmp_path)
