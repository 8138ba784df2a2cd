import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models

from engines.runtime.answer import Timings, TokenEvent
from export.checkpoint.config import DecoderConfig, ModelConfig, VisionConfig
from export.checkpoint.generation_config import GenerationConfig, override_generation_config
from export.errors import UserError
from qv_export.commands.run import command as module
from qv_export.commands.run.answer import ComputePlace, Told, context_capacity, stream_text
from qv_export.commands.run.command import run
from qv_export.commands.run.question import Prompt, interleaved_media, read_prompt
from qv_export.show.console import print_answer

# The bytes of "é" in the alphabet of byte-level BPE, as two tokens.
VOCABULARY = {"H": 0, "i": 1, "Ã": 2, "©": 3, "<|im_end|>": 4}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asks of the pipeline behind it."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "answer", lambda *arguments: calls.append(arguments))
    return calls


def test_pictures_and_videos_keep_the_order_of_the_command_line(
    tmp_path: Path, asked: list[tuple[Any, ...]]
) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    for path in (a, b, c):
        path.touch()
    d.mkdir()
    arguments = ["--image", b, "--video", d, "--prompt", "what?", f"--image={a}", "--video", c, "bundle"]
    result = CliRunner().invoke(run, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    [(bundle, messages, *_)] = asked
    assert bundle == Path("bundle")
    prompt = Prompt("what?", (("image", b), ("video", d), ("image", a), ("video", c)), None)
    assert messages == prompt.messages()


def test_sampling_options_are_passed_on_and_left_open_otherwise(asked: list[tuple[Any, ...]]) -> None:
    CliRunner().invoke(
        run, ["bundle", "--prompt", "x", "--top-p", "0.5", "--seed", "7"], catch_exceptions=False
    )
    [(_, _, _, sampling, told, seed, max_context, prefill_chunk, engine, place, *flags)] = asked
    assert {name: value for name, value in sampling.items() if value is not None} == {"top_p": 0.5}
    assert sampling.keys() == (override_generation_config.__kwdefaults__ or {}).keys() - {"do_sample"}
    assert told == Told()
    assert engine == "onnxruntime"
    assert (seed, max_context, prefill_chunk) == (7, None, None)
    assert place == ComputePlace(num_threads=None, device=None, num_ranks=None, hostfile=None)
    assert flags == [False, False, {}]  # --json, --strict-media and the answer's form


def test_media_come_before_the_text_and_the_system_message_before_both() -> None:
    prompt = Prompt("what?", (("video", Path("v")), ("image", Path("i"))), "be brief")
    assert prompt.messages() == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": Path("v")},
                {"type": "image", "image": Path("i")},
                {"type": "text", "text": "what?"},
            ],
        },
    ]


def test_no_media_and_no_system_message_leave_one_text() -> None:
    assert Prompt("hello", interleaved_media([], (), ()), None).messages() == [
        {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    ]


@dataclass
class Stdin:
    buffer: io.BytesIO


def test_a_dash_reads_the_prompt_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(io.BytesIO("Où?\nHier\n".encode())))
    assert read_prompt("-") == "Où?\nHier"
    assert read_prompt("- a list") == "- a list"


def test_a_prompt_that_is_no_utf8_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(io.BytesIO(b"\xff\xfe")))
    for prompt in ("-", "caf\udce9"):
        with pytest.raises(UserError, match="UTF-8"):
            read_prompt(prompt)


# The context


@dataclass
class Inputs:
    token_ids: np.ndarray


def model_with_context(max_position_embeddings: int) -> ModelConfig:
    vision = VisionConfig(1, 32, 2, 4, 3, 14, 2, 2, 64)
    decoder = DecoderConfig(100, 64, 64, 1, 2, 1, 32, 1e-6, 1e6, (4, 6, 6), False, max_position_embeddings)
    return ModelConfig(vision, decoder, 1, 2, 3, 4, "float32")


@pytest.mark.parametrize(
    ("num_prompt", "max_new", "longest", "asked_for", "expected"),
    [
        (100, 20, 1000, None, 120),
        (100, 20, 110, None, 110),
        (100, 20, 1000, 101, 101),
        (100, 20, 50, 400, 400),
    ],
)
def test_the_cache_is_as_large_as_asked_for_or_as_needed(
    num_prompt: int, max_new: int, longest: int, asked_for: int | None, expected: int
) -> None:
    inputs: Any = Inputs(np.zeros(num_prompt, np.int64))
    config = GenerationConfig(max_new_tokens=max_new)
    assert context_capacity(inputs, config, model_with_context(longest), asked_for) == expected


@pytest.mark.parametrize(("longest", "asked_for"), [(100, None), (1000, 100), (1000, 7)])
def test_a_prompt_that_leaves_no_room_is_the_users_error(longest: int, asked_for: int | None) -> None:
    inputs: Any = Inputs(np.zeros(100, np.int64))
    with pytest.raises(UserError, match=f"has 100 tokens.*{asked_for or longest}"):
        context_capacity(inputs, GenerationConfig(), model_with_context(longest), asked_for)


# Streaming


def byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def events_of(token_ids: list[int]) -> Iterator[TokenEvent]:
    return (TokenEvent(0, token_id, None, Timings(1, 0)) for token_id in token_ids)


def test_text_streams_whole_characters_and_ends_with_a_line_break(capsys: pytest.CaptureFixture[str]) -> None:
    text, heard, is_stopped = stream_text(events_of([0, 1, 2, 3, 4]), byte_tokenizer(), Told(), echo=True)
    assert not is_stopped
    assert text == "Hié"
    assert [event.token_id for event in heard] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == "Hié\n"


def test_json_output_is_not_mixed_with_streamed_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert stream_text(events_of([0, 1]), byte_tokenizer(), Told(), echo=False)[0] == "Hi"
    assert capsys.readouterr().out == ""


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_answer("né")
    assert stream.buffer.getvalue() == b"n?"


def test_budgets_reach_each_picture_and_video_that_can_follow_them(
    tmp_path: Path, asked: list[tuple[Any, ...]]
) -> None:
    picture, film = tmp_path / "p", tmp_path / "v"
    picture.touch()
    film.touch()
    arguments = ["bundle", "--prompt", "x", "--image", str(picture), "--video", str(film)]
    budgets = ["--max-pixels", "78400", "--fps", "1", "--video-end", "3.5"]
    CliRunner().invoke(run, arguments + budgets, catch_exceptions=False)
    [(_, messages, *_)] = asked
    assert messages[0]["content"][:2] == [
        {"type": "image", "image": picture, "max_pixels": 78400},
        {"type": "video", "video": film, "max_pixels": 78400, "fps": 1.0, "video_end": 3.5},
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fps", "1"], "--fps: nothing here could follow it. Give it with --image or --video"),
        (["--image", "{picture}", "--fps", "1", "--max-pixels", "784"], r"--fps: nothing here .* --video"),
    ],
)
def test_a_budget_that_nothing_could_follow_is_refused_by_name(
    tmp_path: Path, asked: list[tuple[Any, ...]], arguments: list[str], says: str
) -> None:
    (tmp_path / "p").touch()
    filled = [argument.replace("{picture}", str(tmp_path / "p")) for argument in arguments]
    with pytest.raises(UserError, match=says):
        CliRunner().invoke(run, ["bundle", "--prompt", "x", *filled], catch_exceptions=False)
    assert asked == []


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_a_model_says_moves_no_cursor_of_a_terminal_and_reaches_a_pipe_as_it_is(
    monkeypatch, is_terminal
):
    said = "a\x1b]0;title\x07b\x9b2J\u202e é\n"
    output = io.StringIO()
    output.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", output)
    print_answer(said)
    assert output.getvalue() == ("a\\x1b]0;title\\x07b\\x9b2J\\u202e é\n" if is_terminal else said)
