"""What an operator says of all pictures and videos: for requests that say nothing, and as a bound on the others."""

import asyncio
import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from engines.open import choose_engine
from engines.serving.openai.app import make_app
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from engines.serving.settings import SERVER_BUDGETS, ServerSettings, settings_for
from engines.store.compatibility import this_machine
from export.bundle import open_bundle
from export.errors import UserError
from export.exporter import export_checkpoint
from export.processor.media.budget import VIDEO_KEYS, Budget
from tests.support.fake_triton import imported_models
from tests.support.pictures import encoded, moving_frames, picture, video_file
from tests.support.serve import ROOT

BUDGETS = {"max_pixels": 4 * 28 * 28, "fps": 1.0, "max_frames": 4, "total_pixels": 8 * 28 * 28}
CHEAP = {"max_tokens": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("budgets") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return open_bundle(directory)


@pytest.fixture(scope="module")
def settings(bundle):
    asked = settings_for(
        bundle,
        None,
        num_slots=1,
        max_context=512,
        num_threads=1,
        max_queue=None,
        allowed_hosts=(),
        budgets=BUDGETS,
        strict_media=True,
    )
    return ServerSettings.from_json(asked.to_json())  # as Triton's model reads them


@pytest.fixture(scope="module")
def openai(bundle, settings):
    """Asks OpenAI's API: what became of the request's media, or what was refused."""
    chosen = choose_engine(bundle, None, num_slots=1, capacity=512, machine=this_machine())
    with ServedModel(bundle, chosen, settings) as model, asyncio.Runner() as runner:
        app = make_app(model, "tiny", with_page=False)

        def ask(part):
            body = json.dumps({"messages": [{"role": "user", "content": [part]}], **CHEAP}).encode()
            status, content = runner.run(call_local(app.state.chat, body, "x"))
            return content["usage"] if status == 200 else content["error"]["message"]

        yield ask
        app.state.chat.close()


@pytest.fixture(scope="module")
def triton(bundle, settings):
    """Asks the Triton model's reader: the grids, or what was refused."""
    with imported_models() as models:
        reader = models.loading.RequestReader(bundle.directory, settings)

        def ask(part):
            messages = json.dumps([{"role": "user", "content": [part]}]).encode()
            try:
                return reader.read({"messages": np.array([messages], np.object_)}).request.inputs.grids
            except UserError as error:
                return str(error)

        yield ask
        reader.close()


def of_image(data, **budget):
    return {"type": "image", "image": base64.b64encode(data).decode(), **budget}


def film(**budget):
    data = video_file(moving_frames(40, 112, 168), fps=4)
    return {"type": "video", "video": base64.b64encode(data).decode(), **budget}


IMAGE = encoded(picture(280, 280, seed=1), "PNG")


def test_it_holds_where_a_request_says_nothing_and_the_usage_tells_the_seconds(openai, triton):
    [(steps, rows, columns)] = triton(of_image(IMAGE))
    assert (steps, rows * columns // 4) == (1, 4)
    [(steps, rows, columns)] = triton(film())
    assert steps == 2
    assert steps * rows * columns // 4 <= 8
    [seen] = openai(film())["media"]
    assert (seen["kind"], len(seen["seconds"])) == ("video", 4)
    assert openai(of_image(IMAGE))["media"][0]["size"] == [280, 280]


def test_a_request_may_ask_for_less(triton):
    [(_, rows, columns)] = triton(of_image(IMAGE, max_pixels=28 * 28, min_pixels=28 * 28))
    assert rows * columns // 4 == 1
    [(steps, _, _)] = triton(film(max_frames=2))
    assert steps == 1


def test_low_detail_is_less_than_any_bound_or_as_much(openai, triton):
    url = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    [(_, rows, columns)] = triton(part)
    assert rows * columns // 4 == 4
    assert openai(part)["media"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (of_image(IMAGE, max_pixels=5 * 28 * 28), "max_pixels"),
        (of_image(IMAGE, resized_height=84, resized_width=84), "resized_height x resized_width"),
        (of_image(IMAGE, min_pixels=5 * 28 * 28), "min_pixels"),
        (film(max_frames=6), "max_frames"),
        (film(nframes=6), "nframes"),
        (film(total_pixels=9 * 28 * 28), "total_pixels"),
        (film(max_pixels=5 * 28 * 28), "max_pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_a_request_may_not_ask_for_more(openai, triton, part, name):
    for told in (openai(part), triton(part)):
        assert isinstance(told, str), told
        assert f"{name} is " in told
        assert "at most" in told


def test_an_operator_who_is_strict_takes_no_damage(openai, triton, bundle):
    file = io.BytesIO()
    picture(280, 280, seed=1).save(file, "JPEG", quality=95)
    cut = of_image(file.getvalue()[:-40])
    for told in (openai(cut), triton(cut)):
        assert isinstance(told, str), told
        assert "truncated or corrupt" in told
    with imported_models() as models:
        reader = models.loading.RequestReader(bundle.directory, ServerSettings(num_slots=1, capacity=512))
        messages = json.dumps([{"role": "user", "content": [cut]}]).encode()
        read = reader.read({"messages": np.array([messages], np.object_)})
        assert read.request.inputs.media[0].notes
        reader.close()


def test_what_a_request_alone_can_ask_is_refused_of_an_operator():
    values = {"nframes": 4, "resized_height": 56, "resized_width": 56, "video_start": 1.0, "video_end": 2.0}
    assert set(SERVER_BUDGETS) | set(values) == VIDEO_KEYS
    with pytest.raises(UserError) as caught:
        ServerSettings(budget=Budget(**values))  # type: ignore[arg-type]
    assert all(f"budget: {name} is a request's own" in str(caught.value) for name in values)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({"max_pixels": 0}, "max_pixels must be a whole number of at least 1"),
        ({"min_frames": 9, "max_frames": 2}, "min_frames 9 is above max_frames 2"),
        ({"max_pixels": 1 << 30}, "max_pixels is 1073741824; at most"),
        ({"total_pixels": 1 << 30}, "total_pixels is 1073741824; at most"),
    ],
    ids=str,
)
def test_what_the_checkpoint_cannot_follow_is_told_to_the_operator(bundle, budgets, says):
    nothing = dict.fromkeys(("num_slots", "max_context", "num_threads", "max_queue"))
    with pytest.raises(UserError, match=says):
        settings_for(bundle, None, **nothing, allowed_hosts=(), budgets=budgets)  # type: ignore[arg-type]


def test_an_operators_most_frames_are_a_bound_and_his_own_bound_comes_first():
    budget = Budget(max_frames=4)
    assert ServerSettings(budget=budget).request_limits.max_seen_frames == 4
    settings = ServerSettings(budget=budget)
    stated = replace(settings, requests=replace(settings.requests, max_seen_frames=8))
    assert stated.request_limits.max_seen_frames == 8
