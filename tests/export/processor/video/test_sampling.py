import io
import math
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from export.errors import UserError
from export.processor.media.limits import MediaLimits
from export.processor.patches import grid_of_frames, write_patches
from export.processor.settings import PIXELS_PER_TOKEN, ImageSettings, VideoSettings
from export.processor.video import sampling as video_module
from export.processor.video.sampling import load_video
from export.processor.video.timeline import sample_frames
from tests.support.pictures import encoded, moving_frames, picture, save, video_file

SETTINGS = VideoSettings()
# Small frames keep the tests quick.
SMALL = replace(SETTINGS, frame=ImageSettings(min_pixels=PIXELS_PER_TOKEN, max_pixels=20 * PIXELS_PER_TOKEN))


def transformers_sampled_indices(num_frames, fps, settings=SETTINGS):
    """Qwen2VLVideoProcessor.sample_frames of Transformers 5.23 at 2 fps, written apart: it needs torchvision."""
    most = math.floor(min(settings.max_frames, num_frames) / 2) * 2
    count = min(max(num_frames / fps * settings.fps, settings.min_frames), most, num_frames)
    count = math.floor(count / 2) * 2
    return torch.arange(0, num_frames, num_frames / count).int().tolist()


def transformers_video_grid(num_frames, height, width, settings):
    """The grid rule of Qwen2VLVideoProcessor in Transformers 5.23 without a total bound, written apart."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    budgets = settings.frame
    new_height, new_width = smart_resize(height, width, 28, budgets.min_pixels, budgets.max_pixels)
    padded = num_frames + num_frames % 2
    return padded // 2, new_height // 14, new_width // 14


@given(st.integers(4, 40000), st.sampled_from([1, 10, 23.976, 24, 25, 29.97, 30, 50, 60, 1000]))
def test_sampling_equals_transformers_up_to_the_rounding_of_its_float_steps(num_frames, fps):
    ours, theirs = sample_frames(num_frames, fps, SETTINGS), transformers_sampled_indices(num_frames, fps)
    # torch.arange steps in floats: now and then it lands a frame off, or writes one index too many.
    assert len(ours) in {len(theirs), len(theirs) - 1}
    assert all(abs(a - b) <= 1 for a, b in zip(ours, theirs, strict=False))


@given(st.integers(1, 100000), st.one_of(st.none(), st.floats(0.1, 1000)))
def test_samples_are_even_in_number_ascending_and_within_bounds(num_frames, fps):
    indices = sample_frames(num_frames, fps, SETTINGS)
    assert 1 <= len(indices) <= 768
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] < num_frames
    if fps is not None and num_frames >= 4:
        assert len(indices) % 2 == 0
        assert len(indices) >= 4


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (50, 10, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),  # two a second
        (55, 10, [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]),  # eleven would be odd
        (6, 60, [0, 1, 3, 4]),  # at least four
        (3, 30, [0, 1, 2]),  # a clip that has fewer is used whole
        (1, 30, [0]),
        (5, None, [0, 1, 2, 3, 4]),  # sampled already
    ],
)
def test_known_samples(num_frames, fps, expected):
    assert sample_frames(num_frames, fps, SETTINGS) == expected


def test_ten_hours_are_768_frames():
    assert len(sample_frames(10 * 3600 * 30, 30, SETTINGS)) == 768


@pytest.mark.parametrize(
    ("num_frames", "width", "height"), [(50, 96, 64), (23, 64, 96), (41, 320, 180), (4, 30, 20)]
)
def test_a_video_file_has_the_grid_and_pixels_of_transformers(num_frames, width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    source = moving_frames(num_frames, width, height)
    # A lossless codec, so that the decoded frames are known.
    content = video_file(source, format_="matroska", codec="ffv1")
    frames = load_video(content, SETTINGS)
    grid = grid_of_frames(frames, SETTINGS.frame)
    sampled = transformers_sampled_indices(num_frames, 10)
    assert grid == transformers_video_grid(len(sampled), height, width, SETTINGS)

    patches = np.empty((np.prod(grid), 1176), np.float32)
    write_patches(frames, SETTINGS.frame, patches)
    size = {"shortest_edge": SETTINGS.frame.min_pixels, "longest_edge": SETTINGS.frame.max_pixels}
    processor = Qwen2VLImageProcessorPil(size=size)
    decoded = decode_everything(content)
    for k, index in enumerate(sampled):
        expected = processor(images=[Image.fromarray(decoded[index])], return_tensors="np")["pixel_values"]
        expected = expected.reshape(-1, 3, 2, 196)[:, :, 0]
        step = patches.reshape(grid[0], -1, 3, 2, 196)[k // 2]
        assert np.array_equal(step[:, :, k % 2], expected)


def decode_everything(content):
    with av.open(io.BytesIO(content), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_file_bytes_folder_list_and_array_agree(tmp_path):
    frames = moving_frames(6)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        # Natural order: 10 comes after 9.
        save(folder / f"frame_{i + 7}.png", encoded(Image.fromarray(frame), "PNG"))
    save(folder / "notes.txt", b"no frame")
    save(folder / ".hidden.png", b"no frame")
    expected = load_video(frames, SMALL)
    assert len(expected) == 6
    for source in (folder, str(folder), np.stack(frames), [Image.fromarray(frame) for frame in frames]):
        assert np.array_equal(load_video(source, SMALL), expected)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_is_sampled_by_its_own_clock(tmp_path, format_):
    frames = [Image.fromarray(frame) for frame in moving_frames(40)]
    options = {"lossless": True} if format_ == "WEBP" else {}
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=100, **options)
    for source in (content, save(tmp_path / "moving.bin", content)):
        resized = load_video(source, SMALL)
        # Four seconds are eight frames, five apart.
        assert len(resized) == 8
        expected = load_video(frames[::5], SMALL)
        assert np.abs(np.array(resized, int) - np.array(expected, int)).max() <= (
            12 if format_ == "GIF" else 0
        )


def test_a_still_picture_is_a_video_of_one_frame():
    content = encoded(picture(60, 60), "PNG")
    assert len(load_video(content, SMALL)) == 1


def test_more_frames_than_the_maximum_are_thinned_out_evenly():
    frames = moving_frames(20, 28, 28)
    resized = load_video(frames, replace(SMALL, max_frames=8))
    assert np.array_equal(resized, load_video([frames[i * 20 // 8] for i in range(8)], SMALL))


def test_full_size_frames_are_not_kept(monkeypatch):
    alive = {"now": 0, "most": 0}
    large = picture(400, 300)

    class Counted:
        fps, num_frames, num_decoded, name = None, 100, 100, "counted"
        starts_s, notes, has_one_size = None, (), True

        def read(self, indices):
            for _ in indices:
                alive["now"] += 1
                alive["most"] = max(alive["most"], alive["now"])
                yield large.copy()
                alive["now"] -= 1

    monkeypatch.setattr(video_module, "open_frames", lambda source, limits: Counted())
    frames = load_video("any", SMALL)
    assert alive["most"] == 1
    # No view keeps a larger array alive, either.
    assert all(frame.nbytes <= 20 * PIXELS_PER_TOKEN * 3 for frame in frames)
    assert len(frames) == 100


def test_a_wrong_frame_count_in_the_packets_is_corrected_by_decoding(monkeypatch):
    class Overcounted:
        fps, num_frames, num_decoded, name = 2.0, 20, 0, "overcounted"
        starts_s, notes, has_one_size = None, (), True

        def read(self, indices):
            self.num_decoded = 16
            yield from (picture(30, 30) for index in indices if index < 16)

    monkeypatch.setattr(video_module, "open_frames", lambda source, limits: Overcounted())
    assert len(load_video("any", SMALL)) == 16


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "holds no frame"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no frame"),
        (np.zeros((2, 4, 4, 3), np.float32), "found float32"),
        ([picture(30, 30), picture(30, 31)], "one size.*30 x 30.*frame 1 is 30 x 31"),
        ([picture(30, 30), b"nothing"], "not a picture"),
        ([picture(1, 300)] * 4, "more than 200 times"),
        ("/no/such/video.mp4", "found nothing"),
        ("https://example.org/a.mp4", "web address"),
        (b"", "not a video"),
        (b"GIF89a\x01\x00", "picture"),
        (7, "int"),
    ],
)
def test_what_cannot_be_a_video_is_refused_with_a_reason(source, message):
    with pytest.raises(UserError, match=message):
        load_video(source, SMALL)


def test_a_folder_without_pictures_is_refused(tmp_path):
    save(tmp_path / "a.txt", b"x")
    with pytest.raises(UserError, match=r"expected pictures .* found 1 other files"):
        load_video(tmp_path, SMALL)


def test_an_animation_that_claims_too_many_pixels_is_refused():
    images = [picture(40, 40, seed=seed) for seed in range(4)]
    content = encoded(images[0], "GIF", save_all=True, append_images=images[1:], duration=100)
    with pytest.raises(UserError, match="claims 4 frames or more, the last one of 40 x 40"):
        load_video(content, SMALL, MediaLimits(max_animation_pixels=5000))


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_counted_up_to_the_limit(format_):
    images = [picture(40, 40, seed=seed) for seed in range(6)]
    content = encoded(images[0], format_, save_all=True, append_images=images[1:], duration=100)
    assert len(load_video(content, SMALL, MediaLimits(max_video_frames=6))) == 4
    with pytest.raises(UserError, match="more than 5 frames"):
        load_video(content, SMALL, MediaLimits(max_video_frames=5))
