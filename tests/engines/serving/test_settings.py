import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from engines.runtime.scheduler_limits import SchedulerLimits
from engines.serving import settings as settings_module
from engines.serving.limits import RequestLimits
from engines.serving.media.pool import MediaSettings
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"allowed_hosts": "img.example.org"}', "allowed_hosts must be a list"),
        ('{"allowed_hosts": [7]}', "allowed_hosts must be a string, found 7"),
        ('{"allowed_hosts": ["http://x"]}', "is no host name"),
        ('{"allowed_hosts": ["*"]}', "is no host name"),
        ('{"scheduler": {"max_queue": 64.5}}', "scheduler: max_queue must be a whole number, found 64.5"),
        ('{"scheduler": {"max_queue": true}}', "max_queue must be a whole number, found True"),
        ('{"scheduler": {"max_queue": null}}', "max_queue must be a whole number, found None"),
        ('{"scheduler": {"reuse_prefixes": 1}}', "reuse_prefixes must be true or false"),
        ('{"requests": {"max_pictures": "5"}}', "max_pictures must be a whole number, found '5'"),
        ('{"requests": {"timeout_seconds": 1e999}}', "1e999"),
        ('{"media": {"num_workers": 1.0}}', "num_workers must be a whole number"),
        ('{"num_threads": "2"}', "num_threads must be a whole number or null"),
        ('{"engine": 7}', "engine must be a string or null"),
        ('{"drain_seconds": "30"}', "drain_seconds must be a number"),
        ('{"log_content": true}', "unknown keys log_content"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(text, says):
    with pytest.raises(UserError) as caught:
        ServerSettings.from_json(text)
    assert says in str(caught.value)


def test_all_settings_of_another_type_are_named_at_once():
    text = '{"num_slots": "8", "what": 1, "scheduler": {"max_queue": 1.5}, "media": {"num_workers": null}}'
    with pytest.raises(UserError, match=r"(?s)what.*num_slots.*max_queue.*num_workers"):
        ServerSettings.from_json(text)


def test_every_setting_is_read_by_something():
    """A setting that nothing reads is a promise that nobody keeps."""
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (Path(__file__).parents[3] / "engines").rglob("*.py")
        if path.name not in {"settings.py", "limits.py", "scheduler_limits.py"} or path.name == "settings.py"
    )
    for kind in (ServerSettings, SchedulerLimits, RequestLimits, MediaSettings):
        for field in fields(kind):
            assert re.search(rf"\.{field.name}\b", source), f"{kind.__name__}.{field.name}"


def test_what_an_engine_was_built_for_bounds_its_server(monkeypatch):
    class Record:
        limits: ClassVar = {"max_batch": 3, "max_context": 128, "max_patches": 400}

    monkeypatch.setattr(settings_module, "find_engine", lambda *_: Record)
    bundle = SimpleNamespace(config=SimpleNamespace(decoder=SimpleNamespace(max_position_embeddings=4096)))
    asked: dict[str, Any] = dict.fromkeys(("num_slots", "max_context", "num_threads"))
    asked |= {"max_queue": 5, "allowed_hosts": ["A.example"]}
    settings = settings_module.settings_for(bundle, "key", **asked)  # type: ignore[arg-type]
    assert (settings.num_slots, settings.capacity, settings.allowed_hosts) == (3, 128, ("a.example",))
    assert (settings.scheduler.max_patches_per_picture, settings.scheduler.max_queue) == (400, 5)
    with pytest.raises(
        UserError, match=r"--slots 4 is more than the 3 .*; --max-context 256 is more than"
    ) as caught:
        settings_module.settings_for(bundle, "key", **{**asked, "num_slots": 4, "max_context": 256})  # type: ignore[arg-type]
    assert "build another engine with --max-batch 4 --max-context 256." in str(caught.value.remedy)
    within = settings_module.settings_for(bundle, "key", **{**asked, "num_slots": 3, "max_context": 64})  # type: ignore[arg-type]
    assert (within.num_slots, within.capacity) == (3, 64)
