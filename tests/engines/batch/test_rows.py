"""Rows of a corpus: read where they are answered, dealt once, dearest first."""

import json
import pickle

import pytest

from engines.batch.rows import Broken, Row, dearest_first, rows_of_files, rows_of_requests
from export.errors import UserError


def request(identifier, *parts):
    body = {"model": "any", "messages": [{"role": "user", "content": list(parts)}]}
    return json.dumps({"custom_id": identifier, "body": body})


def test_a_row_is_read_by_whoever_it_was_sent_to(tmp_path):
    picture, text = {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "é"}
    path = tmp_path / "requests.jsonl"
    path.write_text(f"{request('a', text)}\n\n  {request('b', picture, picture, text)}\n{{")
    rows = [pickle.loads(pickle.dumps(row)) for row in rows_of_requests(path)]
    assert [(row.id, row.num_media) for row in rows] == [("a", 0), ("b", 2), ("line-4", 0)]
    body = json.loads(rows[1].source.read())
    assert body == {"messages": [{"role": "user", "content": [picture, picture, text]}]}
    assert json.loads(rows[0].source.read())["messages"][0]["content"] == [text]
    with pytest.raises(UserError, match="Line 4 is not JSON"):
        rows[2].source.read()


def test_ids_that_come_twice_are_refused_by_name(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(request(name) for name in "abacb"))
    with pytest.raises(UserError, match="2 rows have the custom_id of an earlier one: 'a', 'b'"):
        rows_of_requests(path)


def test_the_prompt_stands_where_it_was_asked_for_and_a_video_is_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"123")
    (tmp_path / "b.mp4").write_bytes(b"12345")
    for is_first in (False, True):
        rows = rows_of_files(
            sorted(tmp_path.iterdir()), "Read.", {"max_completion_tokens": 3}, is_prompt_first=is_first
        )
        body = json.loads(rows[0].source.read())
        kinds = [part["type"] for part in body["messages"][0]["content"]]
        assert kinds == (["text", "image"] if is_first else ["image", "text"])
        assert body["max_completion_tokens"] == 3
        video = json.loads(rows[1].source.read())
        assert {part["type"] for part in video["messages"][0]["content"]} == {"text", "video"}
    assert [row.cost for row in rows] == [3, 5]
    [gone] = rows_of_files([tmp_path / "none.png"], "Read.", {})
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        gone.source.read()


def test_what_takes_long_comes_first_and_equals_keep_their_order():
    rows = [Row(str(number), Broken(""), cost) for number, cost in enumerate((1, 9, 1, 5))]
    assert [row.id for row in dearest_first(rows)] == ["1", "3", "0", "2"]
