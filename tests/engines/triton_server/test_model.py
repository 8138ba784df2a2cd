import json

import pytest

from engines.serving.settings import ServerSettings
from engines.triton_server.repository import write_repository
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.engines.triton_server.test_requests import TINY, ask, image, strings
from tests.support.fake_triton import Logger, Request, TritonError, imported_models

ANSWER = "GATE7"


class Panic(BaseException):
    """As the native libraries raise it: no `Exception`."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """What Triton gives to the models of a repository."""
    directory = tmp_path_factory.mktemp("model")
    export_checkpoint(TINY, directory / "bundle")
    settings = ServerSettings(num_slots=2, capacity=512, num_threads=1)
    write_repository(
        open_bundle(directory / "bundle"), directory / "repository", settings, allow_unvalidated=True
    )
    config = {"parameters": {"settings": {"string_value": settings.to_json()}}}
    return {
        "model_config": json.dumps(config),
        "model_repository": str(directory / "repository" / "qwen2_vl"),
        "model_version": "1",
        "model_name": "qwen2_vl",
    }


@pytest.fixture(scope="module")
def model(arguments):
    """The chat model, served without a server."""
    with imported_models() as models:
        served = models.model.TritonPythonModel()
        served.initialize(arguments)
        yield served
        served.finalize()


def answer(model, request):
    model.execute([request])
    return request.sender.wait()


def text_of(responses):
    assert [response.error for response in responses] == [None] * len(responses)
    return "".join(response.text("text") for response in responses)


def recorded(calls, function):
    def call(self):
        calls.append(self)
        function(self)

    return call


def error_of(responses):
    [response] = responses
    assert isinstance(response.error, TritonError)
    return response.error


def question(**tensors):
    """One that has an answer, which is ANSWER."""
    gate = (TINY.parents[1] / "examples" / "pictures" / "gate.png").read_bytes()
    return ask(image("media:0"), "What does the text say?", media=strings(gate), **tensors)


def test_a_question_is_answered_in_pieces(model):
    responses = answer(model, Request(question()))
    assert responses[-1].text("finish_reason") == "stop"
    assert len(responses) >= 2
    assert text_of(responses) == ANSWER
    assert json.loads(responses[-1].text("usage"))["visual_tokens"] > 0


@pytest.mark.parametrize("name", ["token_ids_from_conversation", "media_from_conversation"])
def test_a_native_librarys_panic_is_an_answer_and_the_next_request_is_served(model, monkeypatch, name):
    def panic(*_, **__):
        raise Panic("called `Option::unwrap()` on a `None` value")

    with monkeypatch.context() as patch:
        patch.setattr(f"export.processor.processor.{name}", panic)
        error = error_of(answer(model, Request(ask("Hello"))))
    assert error.code == TritonError.INTERNAL
    assert "unwrap" not in error.message
    assert any("unwrap" in line for line in Logger.lines)
    assert text_of(answer(model, Request(question()))) == ANSWER


def test_a_request_whose_inputs_cannot_be_read_fails_no_other(model):
    broken = Request(dict.fromkeys(["messages"]))
    sound = Request(question())
    model.execute([broken, sound])
    assert error_of(broken.sender.wait()).code == TritonError.INTERNAL
    assert text_of(sound.sender.wait()) == ANSWER


def test_a_panic_while_warming_up_keeps_the_model_from_loading_and_leaves_nothing_running(
    arguments, monkeypatch
):
    closed: list[object] = []
    with imported_models() as models:

        def panic(*_):
            raise Panic("no warmth")

        monkeypatch.setattr(models.model, "warm_up", panic)
        for owner in (models.model.SchedulerService, models.model.RequestReader):
            monkeypatch.setattr(owner, "close", recorded(closed, owner.close))
        with pytest.raises(Panic):
            models.model.TritonPythonModel().initialize(arguments)
    assert len(closed) == 2
