"""What is given to calibrate by, and what is refused."""

import json
import os

import pytest
from PIL import Image

from export.errors import UserError
from export.processor.processor import Processor
from export.quantization.calibration import conversations as module
from export.quantization.calibration.conversations import read_conversations

TINY = "models/qwen2-vl-tiny"


@pytest.fixture(scope="module")
def processor():
    return Processor.from_directory(TINY)


@pytest.fixture
def folder(tmp_path):
    for name, color in (("b", "red"), ("a", "blue")):
        Image.new("RGB", (56, 56), color).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("Which color?")
    return tmp_path


def line(*messages, **more):
    return json.dumps({"messages": list(messages), **more})


def question(image="a.png"):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Which color?"}]
    return {"role": "user", "content": content}


def test_a_folder_of_pictures_and_a_file_of_the_same_questions_are_the_same_data(folder, processor):
    (folder / "b.txt").write_text("Which color?")
    lines = folder / "same.jsonl"
    lines.write_text(f"{line(question())}\n\n{line(question('b.png'))}\n")
    both = [read_conversations(path, processor) for path in (folder, lines)]
    ids = [[list(inputs.token_ids) for inputs in conversations] for conversations in both]
    assert ids[0] == ids[1]
    records = [conversations.record() for conversations in both]
    assert records[0].sha256 == records[1].sha256
    assert [record.num_samples for record in records] == [2, 2]
    assert records[1].source == "same.jsonl"


def test_another_picture_is_other_data(folder, processor):
    digests = []
    for color in ("blue", "green"):
        Image.new("RGB", (56, 56), color).save(folder / "a.png")
        conversations = read_conversations(folder, processor)
        list(conversations)
        digests.append(conversations.record().sha256)
    assert digests[0] != digests[1]


def test_answers_among_the_messages_are_looked_at(folder, processor):
    lines = folder / "some.jsonl"
    lines.write_text(line(question(), {"role": "assistant", "content": "blue"}))
    [inputs] = read_conversations(lines, processor)
    assert processor.tokenizer.decode(list(inputs.token_ids)).endswith("blue")


def test_of_too_many_those_that_are_spread_evenly_are_taken(folder, processor, monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLES", 3)
    lines = folder / "many.jsonl"
    lines.write_text("\n".join(line({"role": "user", "content": f"{i}"}) for i in range(10)))
    assert [sample.name for sample in read_conversations(lines, processor).samples] == [
        "line 1",
        "line 4",
        "line 7",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]\n{}\n" + line(question(), n=2), ["line 1", "line 2", "line 3: unknown keys n"]),
        ("{" * 100_000, ["line 1"]),
        ("\n".join(["{}"] * 30), ["and 20 more"]),
        ("", ["holds no picture and no conversation"]),
        ("\n \n", ["holds no picture and no conversation"]),
        (b"\xff\xfe{}", ["cannot be read"]),
    ],
)
def test_a_file_that_is_no_list_of_conversations_is_refused_with_every_line(
    folder, processor, content, expected
):
    lines = folder / "wrong.jsonl"
    lines.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as raised:
        read_conversations(lines, processor)
    assert all(part in str(raised.value) for part in expected), raised.value
    assert len(str(raised.value)) < 3000


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [question("missing.png")],
        [{"role": "user"}],
        [{"role": "robot", "content": "x"}],
        [question("https://example.com/a.png")],
        ["x"],
    ],
)
def test_a_conversation_that_cannot_be_used_is_named(folder, processor, messages):
    lines = folder / "wrong.jsonl"
    lines.write_text(f"{line(question())}\n{line(*messages)}")
    conversations = read_conversations(lines, processor)
    with pytest.raises(UserError, match=r"wrong\.jsonl, line 2: "):
        list(conversations)


def test_a_folder_without_pictures_and_a_pipe_are_refused(tmp_path, processor):
    with pytest.raises(UserError, match="holds no picture"):
        read_conversations(tmp_path, processor)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="not a regular file but a pipe"):
        read_conversations(tmp_path / "pipe.jsonl", processor)
