import json
import time

import numpy as np
import pytest

from benchmarks.hostile_media import gif_of_frames
from engines.serving.settings import ServerSettings
from engines.serving.triton.repository import write_repository
from export.bundle import open_bundle
from export.errors import UserError
from export.exporter import export_checkpoint
from export.processor.text.template_process import TEMPLATE_PROCESS
from tests.engines.serving.triton.test_requests import TINY, ask, image, strings
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
    responses = answer(model, Request(question(stream=np.array([True]))))
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


@pytest.mark.parametrize("stream", [None, False])
def test_an_answer_comes_whole_unless_a_stream_is_asked_for(model, stream):
    tensors = {} if stream is None else {"stream": np.array([stream])}
    [response] = answer(model, Request(question(**tensors)))
    assert text_of([response]) == ANSWER
    assert response.text("finish_reason") == "stop"
    assert json.loads(response.text("usage"))["completion_tokens"] > 0


def test_stop_strings_hold_for_a_whole_answer_too(model):
    assert text_of(answer(model, Request(question(stop=strings("7"))))) == "GATE"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"max_new_tokens": 1}, "max_new_tokens (meant max_tokens?)"),
        ({"max_token": 1}, "max_token (meant max_tokens?)"),
        ({"top_P": 0.1}, "top_P (meant top_p?)"),
        ({"n": 2, "logprobs": True}, "Nothing here follows logprobs, n."),
        ({"k" * 10_000: 1}, "kkk"),
    ],
)
def test_a_wish_that_nothing_follows_is_refused_by_name_with_all_other_mistakes(model, parameters, says):
    tensors = question(temperature=np.array([-1.0], np.float32))
    error = error_of(answer(model, Request(tensors, json.dumps(parameters))))
    assert error.code == TritonError.INVALID_ARG
    assert says in error.message
    assert "temperature must be" in error.message
    assert len(error.message) < 1000


def test_names_that_are_no_text_are_the_clients_mistake(model):
    class Undecodable(Request):
        def parameters(self):
            return b'{"repetition\xcapenalty": 1}'.decode()

    error = error_of(answer(model, Undecodable(question())))
    assert error.code == TritonError.INVALID_ARG
    assert "must be UTF-8" in error.message


def test_the_servers_own_parameters_are_no_wishes(model):
    parameters = json.dumps({"triton_enable_empty_final_response": True})
    assert text_of(answer(model, Request(question(), parameters))) == ANSWER


def test_a_request_for_more_than_the_engine_holds_is_told_the_engines_limit(model):
    error = error_of(answer(model, Request(question(max_tokens=np.array([513], np.int32)))))
    assert "max_tokens is 513, this server allows 512 at most" in error.message


def test_the_time_of_a_request_counts_from_its_receipt_over_all_that_reads_it(model, monkeypatch):
    run = TEMPLATE_PROCESS.run

    def slow(job, seconds):
        time.sleep(0.5)
        return run(job, seconds)

    monkeypatch.setattr(TEMPLATE_PROCESS, "run", slow)
    started = time.monotonic()
    request = Request(question(timeout_seconds=np.array([0.3], np.float32)))
    responses = answer(model, request)
    assert time.monotonic() - started < 1.5
    assert error_of(responses).code == TritonError.INVALID_ARG
    assert "time" in error_of(responses).message


def test_the_chat_template_gets_what_is_left_of_the_requests_time(model, monkeypatch):
    run, seen = TEMPLATE_PROCESS.run, []

    def note(job, seconds):
        seen.append(seconds)
        return run(job, seconds)

    monkeypatch.setattr(TEMPLATE_PROCESS, "run", note)
    assert text_of(answer(model, Request(question(timeout_seconds=np.array([2.0], np.float32))))) == ANSWER
    assert 0 < seen[0] <= 2.0


def test_a_client_that_left_is_not_worked_for(model, monkeypatch):
    asked = []
    monkeypatch.setattr("export.processor.text.template.TEMPLATE_PROCESS.run", lambda *_: asked.append(1))
    request = Request(question())
    request.sender.cancelled = True
    assert error_of(answer(model, request)).code == TritonError.CANCELLED
    assert not asked


def part_models(arguments, models):
    preprocess, encoder = models.preprocess.TritonPythonModel(), models.vision_encoder.TritonPythonModel()
    preprocess.initialize(arguments)
    encoder.initialize(arguments)
    return preprocess, encoder


def test_preprocessing_has_a_time_of_its_own(arguments, monkeypatch):
    """An instance answers one request at a time, so each is ended before it holds up the others for long."""
    with imported_models() as models:
        preprocess, _ = part_models(arguments, models)
        monkeypatch.setattr(models.preprocess, "MAX_SECONDS", 0.5)
        bounded = models.preprocess.own_settings(ServerSettings())
        assert (bounded.requests.timeout_seconds, bounded.media.num_workers) == (0.5, 1)
        slow = [{"type": "video", "video": "media:0"}]
        tensors = {
            "messages": np.array([json.dumps([{"role": "user", "content": slow}]).encode()], np.object_),
            "media": np.array([gif_of_frames(2000, 600)], np.object_),
            "timeout_seconds": np.array([0.5], np.float32),
        }
        started = time.monotonic()
        [late] = preprocess.execute([Request(tensors)])
        seconds = time.monotonic() - started
        [given] = preprocess.execute([Request({name: question()[name] for name in ("messages", "media")})])
        preprocess.finalize()
    assert "not decoded within" in error_of([late]).message
    assert seconds < 1.5
    assert given.error is None


def test_the_parts_refuse_wishes_and_calls_that_are_too_large(arguments):
    with imported_models() as models:
        preprocess, encoder = part_models(arguments, models)
        [given] = preprocess.execute([Request({name: question()[name] for name in ("messages", "media")})])
        [refused] = preprocess.execute([Request(question(), '{"max_tokens": 1}')])
        [encoded] = encoder.execute([Request(given.tensors)])
        [unknown] = encoder.execute([Request(given.tensors, '{"dtype": "float16"}')])
        huge = {**given.tensors, "patches": np.zeros((512 * 4 + 4, 1176), np.float32)}
        [too_large] = encoder.execute([Request(huge)])
        leaving = Request({name: question()[name] for name in ("messages", "media")})
        leaving.sender.cancelled = True
        [left] = preprocess.execute([leaving])
        preprocess.finalize()
    assert error_of([left]).code == TritonError.CANCELLED
    assert encoded.error is None
    assert encoded.tensors["visual_embeds"].shape == (len(given.tensors["patches"]) // 4, 192)
    assert "Nothing here follows max_tokens" in error_of([refused]).message
    assert "Nothing here follows dtype" in error_of([unknown]).message
    assert "takes 2048 in one call" in error_of([too_large]).message


WRAPPING = [0, *range(2**30, 2**32, 2**30), 2**32 + 8]


@pytest.mark.parametrize(
    ("cu_seqlens", "says"),
    [
        (np.array(WRAPPING, np.int64).astype(np.int32), "must rise"),
        (np.array([0, 4, -(2**31), 2**31 - 4, 8], np.int64).astype(np.int32), "must rise"),
        (np.array([0, 2**31 - 4, 8], np.int64).astype(np.int32), "must rise"),
        (np.zeros(70_000, np.int32), "has 69999 segments, this server takes 2048"),
    ],
)
def test_offsets_that_wrap_and_segments_without_end_are_refused(cu_seqlens, says):
    with imported_models() as models, pytest.raises(UserError, match=says):
        patches, positions = np.zeros((8, 1176), np.float32), np.zeros((2, 8), np.int32)
        models.vision_encoder.require_sound(patches, positions, cu_seqlens, 4)
