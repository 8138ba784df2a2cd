import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.images import load_image, read_image
from export.processor.media.limits import MediaLimits
from tests.support.pictures import encoded, picture


@pytest.fixture(scope="module")
def whole():
    return encoded(picture(320, 240), "JPEG", quality=90)


def test_a_jpeg_without_its_end_marker_is_the_whole_picture(whole):
    image, notes = read_image(whole[:-2])
    assert np.array_equal(np.asarray(image), np.asarray(load_image(whole)))
    assert notes == (f"The picture in {len(whole) - 2} bytes: its end is missing.",)


def test_what_is_there_is_taken_and_what_is_missing_is_said(whole):
    image, notes = read_image(whole[: len(whole) * 92 // 100])
    assert "of its rows are missing" in notes[0]
    expected = np.asarray(load_image(whole))
    assert np.array_equal(np.asarray(image)[:200], expected[:200])


@pytest.mark.parametrize("kept", [0.8, 0.5, 0.2])
def test_more_than_the_stated_share_is_refused_with_it(whole, kept):
    with pytest.raises(UserError, match=r"truncated or corrupt: \d+% of its rows are missing; at most 15%"):
        load_image(whole[: int(len(whole) * kept)])


def test_any_damage_is_an_error_where_none_is_to_be_taken(whole):
    with pytest.raises(UserError, match="truncated or corrupt"):
        load_image(whole[:-2], MediaLimits(strict=True))


def test_a_white_page_without_its_end_is_not_taken_for_a_lost_one():
    page = Image.new("RGB", (320, 240), "white")
    page.paste(picture(320, 40), (0, 0))
    image, notes = read_image(encoded(page, "JPEG")[:-2])
    assert "its end is missing" in notes[0]
    assert np.asarray(image)[-1].min() > 250


def test_a_progressive_jpeg_is_less_sharp_and_whole():
    content = encoded(picture(320, 240), "JPEG", quality=90, progressive=True)
    image, notes = read_image(content[: len(content) * 9 // 10])
    assert "its last details are missing" in notes[0]
    assert np.abs(np.asarray(image).astype(int) - np.asarray(load_image(content))).mean() < 20
    first_scan = content.index(b"\xff\xda")
    with pytest.raises(UserError):
        load_image(content[: first_scan + 40])


def test_an_untouched_picture_has_no_notes(whole):
    assert read_image(whole)[1] == ()
