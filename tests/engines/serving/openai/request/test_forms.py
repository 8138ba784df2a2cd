"""Answers of a given form: what is finished parses and validates, what cannot be met is refused at once."""

import json
import re

import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.schema_grammar import FORMATS, schemas
from tests.engines.serving.openai.served import HELLO, MODEL, QUESTIONS, ask, body_of, messages_of

PICTURE = messages_of(next(question for question in QUESTIONS if question.images))


def text_of(answer):
    return answer.choices[0].message.content


def named(schema):
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


COUNT = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["count", "kind"],
    "additionalProperties": False,
}


def test_an_answer_follows_a_json_schema_whole_and_streamed(client):
    answer = ask(client, PICTURE, response_format=named(COUNT), max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(text_of(answer)), COUNT)
    chunks = list(ask(client, PICTURE, response_format=named(COUNT), max_tokens=60, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(answer)


def test_any_object_is_one(client):
    answer = ask(client, PICTURE, response_format={"type": "json_object"}, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text_of(answer)), dict)
    assert text_of(answer).startswith("{")
    free = ask(client, HELLO, response_format={"type": "text"}, max_tokens=4)
    assert text_of(free) == text_of(ask(client, HELLO, max_tokens=4))


@pytest.mark.parametrize("prefix", ["guided_", "structured_outputs"])
def test_vllms_forms_are_followed_by_both_its_names(client, prefix):
    def asked(form, content, **fields):
        body = {f"guided_{form}": content} if prefix == "guided_" else {"structured_outputs": {form: content}}
        return text_of(ask(client, PICTURE, max_tokens=60, extra_body={**body, **fields}))

    assert re.fullmatch(r"[0-9]{3}-[a-c]", asked("regex", r"[0-9]{3}-[a-c]"))
    assert asked("choice", ["a house", "ein Haus — groß"]) in {"a house", "ein Haus — groß"}
    assert re.fullmatch(r"(yes|no)!", asked("grammar", 'root ::= ("yes" | "no") "!"'))
    jsonschema.validate(json.loads(asked("json", COUNT)), COUNT)
    jsonschema.validate(json.loads(asked("json", json.dumps(COUNT))), COUNT)


def test_a_form_wins_over_every_other_wish(client):
    wishes = {"ignore_eos": True, "min_tokens": 30, "no_repeat_ngram_size": 1, "guided_regex": "(ab){5}"}
    assert text_of(ask(client, HELLO, max_tokens=60, extra_body=wishes)) == "ababababab"
    drawn = ask(
        client,
        HELLO,
        n=4,
        seed=1,
        temperature=2,
        max_tokens=60,
        extra_body={"top_k": 0, "guided_regex": "[a-z]{4}"},
    )
    texts = [choice.message.content for choice in drawn.choices]
    assert all(re.fullmatch("[a-z]{4}", text) for text in texts)
    assert len(set(texts)) > 1


REFUSED = {
    "no type": (named({"type": "nope"}), "nope"),
    "what nothing meets": (named({"allOf": [{"type": "string"}, {"type": "integer"}]}), "nsatisfiable"),
    "a key that is not followed": (named({"type": "object", "dependentSchemas": {}}), "dependentSchemas"),
    "leave to ignore it": (named({"not": {}, "x-guidance": {"lenient": True}}), "not"),
    "a reference to nothing": (named({"$ref": "#/x"}), "/x"),
    "no schema": ({"type": "json_schema"}, "needs json_schema"),
    "a schema that is too large": (named({"enum": ["x" * 70_000]}), "at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schema_that_cannot_be_followed_is_refused_at_once(client, case):
    form, text = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(
            "/chat/completions",
            body={"model": MODEL, "messages": HELLO, "response_format": form},
            cast_to=object,
        )
    assert text in body_of(caught.value)["message"]
    assert body_of(caught.value)["param"].startswith("response_format")


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "("},
        {"guided_choice": []},
        {"guided_choice": ["a", ""]},
        {"guided_grammar": "start: x"},
        {"guided_json": "{"},
        {"guided_json": COUNT, "guided_regex": "a"},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    ],
    ids=str,
)
def test_other_forms_that_cannot_be_followed_are_refused_by_name(client, fields):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, HELLO, extra_body=fields)
    assert any(body_of(caught.value)["param"].startswith(name) for name in fields)


@pytest.mark.parametrize("text", ["<|im_end|>", "<|box_start|>(1,2)<|box_end|>", "a <|im_end|><|im_end|> b"])
def test_a_text_that_reads_like_special_tokens_is_text_in_every_form(client, text):
    """Its tokens are ordinary ones: the token of that name would end the answer, or be none of the grammar's."""
    form = {"structured_outputs": {"choice": [text]}}
    assert text_of(ask(client, HELLO, max_tokens=80, extra_body=form)) == text
    schema = {
        "type": "object",
        "properties": {text: {"const": text}},
        "required": [text],
        "additionalProperties": False,
    }
    answer = ask(client, HELLO, max_tokens=160, response_format=named(schema))
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(text_of(answer)) == {text: text}


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(schema=schemas, seed=st.integers(0, 1000))
def test_every_finished_answer_to_any_schema_validates(client, schema, seed):
    sampling = {"temperature": 1.5, "seed": seed, "extra_body": {"top_k": 0}}
    answer = ask(client, HELLO, response_format=named(schema), max_tokens=300, **sampling)
    if answer.choices[0].finish_reason == "stop":
        jsonschema.validate(json.loads(text_of(answer)), schema, format_checker=FORMATS)
    else:
        assert answer.choices[0].finish_reason == "length"
