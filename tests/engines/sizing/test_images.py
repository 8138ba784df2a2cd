import os
from pathlib import Path

import pytest
from PIL import Image

from engines.sizing.images import ImageSizes, histogram, limits_for_images, read_image_sizes
from export.errors import UserError
from export.processor.settings import ImageSettings

SETTINGS = ImageSettings()


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def test_pictures_are_measured_as_the_processor_sees_them(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 56, 84)
    save(tmp_path / "deep" / "b.jpg", 280, 280)
    save(tmp_path / "large.png", 4000, 3000)  # shrunk to the settings' budget
    sizes = read_image_sizes(tmp_path, SETTINGS)
    assert sizes.patches[:2] == (4 * 6, 20 * 20)
    assert 0.95 * SETTINGS.max_pixels < sizes.patches[2] * 14 * 14 <= SETTINGS.max_pixels
    assert sizes.percentile(50) == 400
    assert sizes.percentile(99) == sizes.patches[2]


def test_what_is_no_picture_is_skipped_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 56, 56)
    save(tmp_path / "ribbon.png", 28 * 300, 28)  # one side more than 200 times the other
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    bomb = b"P6 60000 60000 255\n"  # claims 3.6 gigapixels
    (tmp_path / "bomb.ppm").write_bytes(bomb)
    (tmp_path / ".hidden").write_text("not looked at")
    os.mkfifo(tmp_path / "pipe")  # would block a reader
    sizes = read_image_sizes(tmp_path, SETTINGS)
    assert sizes.patches == (16,)
    assert len(sizes.skipped) == 3


def test_a_folder_without_pictures_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no picture found"):
        read_image_sizes(tmp_path, SETTINGS)


def test_limits_serve_the_largest_pictures_and_leave_room_for_text_and_answer() -> None:
    sizes = ImageSizes("somewhere", (16, 400, 1000, 1200), ())
    assert limits_for_images(sizes, SETTINGS, 1) == {
        "max_patches": 1280,  # 1,200 in steps of 256
        "max_segments": 64,
        "max_prompt_tokens": 576,  # 320 visual tokens and 256 others
        "max_context": 1088,  # and 512 for the answer
    }
    assert limits_for_images(sizes, SETTINGS, 2)["max_patches"] == 2560  # twice 1,200
    assert limits_for_images(ImageSizes("", (1000,), ()), SETTINGS, 3)["max_patches"] == 3072


def test_few_segments_are_enough_where_no_picture_is_small() -> None:
    limits = limits_for_images(ImageSizes("", (500, 1000), ()), SETTINGS, 2)
    assert (limits["max_patches"], limits["max_segments"]) == (2048, 4)


def test_a_histogram_counts_every_picture_once() -> None:
    patches = (4, 4, 5, 30, 99)
    bins = histogram(patches, num_bins=4)
    assert bins == [(4, 27, 3), (28, 51, 1), (52, 75, 0), (76, 99, 1)]
    assert histogram((7, 7)) == [(7, 7, 2)]
