from dataclasses import replace

import pytest

from engines.serving.limits import RequestLimits
from engines.serving.media_pool import MediaSettings
from engines.serving.settings import ServerSettings
from export.errors import UserError

SETTINGS = ServerSettings(num_slots=3, capacity=256, allowed_hosts=("a.example",), num_threads=2)


def test_settings_survive_the_way_through_the_configuration():
    assert ServerSettings.from_json(SETTINGS.to_json()) == SETTINGS
    assert ServerSettings.from_json("{}") == ServerSettings()


@pytest.mark.parametrize(("asked", "expected"), [(None, 256), (100, 100), (999, 256)])
def test_a_request_may_hold_what_the_context_holds_or_less(asked, expected):
    settings = replace(SETTINGS, requests=RequestLimits(max_context=asked, max_pictures=5))
    assert settings.request_limits == RequestLimits(max_context=expected, max_pictures=5)


def test_all_that_is_out_of_range_is_named_at_once():
    with pytest.raises(UserError, match=r"num_slots.*\n.*capacity.*\n.*drain_seconds"):
        ServerSettings(num_slots=0, capacity=-1, drain_seconds=float("nan"))


@pytest.mark.parametrize(
    "text",
    ['{"slots": 3}', '{"scheduler": {"queue": 1}}', '{"requests": []}', '{"media": {"workers": 2}}', "["],
)
def test_unknown_keys_and_wrong_shapes_are_refused(text):
    with pytest.raises(UserError):
        ServerSettings.from_json(text)


def test_bounds_on_media_are_settings_too():
    settings = replace(SETTINGS, media=MediaSettings(num_workers=3, picture_seconds=2.5))
    assert ServerSettings.from_json(settings.to_json()) == settings
    with pytest.raises(UserError, match=r"num_workers.*\n.*video_seconds"):
        MediaSettings(num_workers=0, video_seconds=float("nan"))
    with pytest.raises(UserError, match="num_workers must be a number"):
        MediaSettings(num_workers=1.5)  # type: ignore[arg-type]
