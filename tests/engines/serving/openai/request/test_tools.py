"""Tools: rendered by the checkpoint's template, called in its answer, told as OpenAI's clients expect."""

import json
import shutil
from itertools import pairwise
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.serving.openai.request.tools import ToolCallReader
from export.exporter import export_checkpoint
from tests.engines.serving.openai.served import HELLO, MODEL, ask, body_of
from tests.support.serve import ROOT, running_serve

TEMPLATE = """{%- if tools -%}<|im_start|>system
Call a tool: <tool_call>{"name": ..., "arguments": ...}</tool_call>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""
OTHER_FORM = TEMPLATE.replace("<tool_call>", "[call]").replace("</tool_call>", "[/call]")
PLACE = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Bonn", "Ulm"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name, parameters=None, **fields):
    function = {"name": name, "description": f"Tells the {name}.", "parameters": parameters, **fields}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


WEATHER, CLOCK = tool("weather", PLACE), tool("clock")


def exported(directory, template):
    shutil.copytree(ROOT / "models" / MODEL, directory / "checkpoint")
    (directory / "checkpoint" / "chat_template.jinja").write_text(template)
    export_checkpoint(directory / "checkpoint", directory / "bundle")
    return directory / "bundle"


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A client of a server whose template renders tools."""
    directory = exported(tmp_path_factory.mktemp("tools"), TEMPLATE)
    with running_serve(
        directory, "--threads", 1, "--max-context", 1024, "--model-name", MODEL, "--no-page"
    ) as server:
        yield server.client()


def calls_of(answer):
    return [
        (call.function.name, json.loads(call.function.arguments))
        for call in answer.choices[0].message.tool_calls
    ]


def streamed(client, **fields):
    """A streamed answer: its text, its calls in order, and why it ended."""
    text, reason = "", None
    calls: list[Any] = []
    for chunk in ask(client, HELLO, stream=True, **fields):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            assert call.index == len(calls)
            calls.append((call.function.name, json.loads(call.function.arguments)))
        reason = choice.finish_reason or reason
    return text, calls, reason


def test_a_required_call_follows_its_schema_whole_and_streamed(caller):
    wishes = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 120}
    answer = ask(caller, HELLO, **wishes)
    [(name, arguments)] = calls_of(answer)
    assert name == "weather"
    jsonschema.validate(arguments, PLACE)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls[0].id.startswith("call_")
    assert streamed(caller, **wishes) == ("", [(name, arguments)], "tool_calls")


def test_the_function_that_is_named_is_called_once_and_no_other(caller):
    choice = {"type": "function", "function": {"name": "clock"}}
    answer = ask(caller, HELLO, tools=[WEATHER, CLOCK], tool_choice=choice, max_tokens=120)
    assert calls_of(answer) == [("clock", {})]


SAID = (
    'Hm.\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}\n</tool_call>'
)
CALLED = [("clock", {}), ("weather", {"city": "Ulm", "days": 2})]


def test_calls_that_the_model_chooses_to_make_are_told_apart_from_its_text(caller):
    wishes = {"tools": [WEATHER, CLOCK], "max_tokens": 200, "extra_body": {"guided_choice": [SAID]}}
    answer = ask(caller, HELLO, **wishes)
    assert answer.choices[0].message.content == "Hm."
    assert calls_of(answer) == CALLED
    assert streamed(caller, **wishes) == ("Hm.", CALLED, "tool_calls")
    single = ask(caller, HELLO, parallel_tool_calls=False, **wishes)
    assert calls_of(single) == CALLED[:1]
    assert single.usage.completion_tokens < answer.usage.completion_tokens


def test_without_tools_or_with_the_choice_of_none_such_text_is_text(caller):
    wishes = {"max_tokens": 200, "extra_body": {"guided_choice": [SAID]}}
    for fields in ({}, {"tools": [CLOCK], "tool_choice": "none"}):
        answer = ask(caller, HELLO, **fields, **wishes)
        assert answer.choices[0].message.content == SAID
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "stop"
    plain = ask(caller, HELLO, max_tokens=1)
    assert ask(caller, HELLO, tools=[CLOCK], tool_choice="none", max_tokens=1).usage == plain.usage
    assert ask(caller, HELLO, tools=[CLOCK], max_tokens=1).usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_strict_tool_binds_a_call_and_leaves_text_free(caller):
    strict = tool("weather", PLACE, strict=True)
    free = ask(caller, HELLO, tools=[WEATHER], max_tokens=40).choices[0].message.content
    assert ask(caller, HELLO, tools=[strict], max_tokens=40).choices[0].message.content == free
    with pytest.raises(openai.BadRequestError) as caught:
        ask(caller, HELLO, tools=[tool("weather", {"type": "nope"}, strict=True)])
    assert body_of(caught.value)["param"] == "tools"


def test_a_talk_with_calls_and_their_results_goes_on(caller):
    call = ask(
        caller, HELLO, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=120
    )
    message = call.choices[0].message
    talk = [
        *HELLO,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
    ]
    answer = ask(caller, talk, tools=[WEATHER], max_tokens=4)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    # Arguments are rendered as the object that they are, not as a text that holds one.
    as_object = json.loads(json.dumps(talk))
    as_object[1]["tool_calls"][0]["function"]["arguments"] = json.loads(
        message.tool_calls[0].function.arguments
    )
    again = caller.post(
        "/chat/completions",
        body={"model": MODEL, "messages": as_object, "tools": [WEATHER], "max_tokens": 4},
        cast_to=object,
    )
    assert again["usage"]["prompt_tokens"] == answer.usage.prompt_tokens


REFUSED: dict[str, Any] = {
    "no JSON in a call of the talk": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]},
                *HELLO,
            ]
        },
        "messages",
        "no JSON",
    ),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", "has none"),
    "a tool that is not there": (
        {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "map"}}},
        "tool_choice",
        "map",
    ),
    "two of one name": ({"tools": [CLOCK, CLOCK]}, "tools", "one name"),
    "a name with spaces": ({"tools": [tool("a b")]}, "tools.0.function.name", "pattern"),
    "a tool of another type": ({"tools": [{"type": "web"}]}, "tools.0.type", "function"),
    "two forms": (
        {"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tool_choice",
        "one form",
    ),
    "arguments of no schema": (
        {"tools": [tool("a", {"type": "nope"})], "tool_choice": "required"},
        "tool_choice",
        "nope",
    ),
    "the old way": ({"functions": []}, "functions", "nothing here follows it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_followed_is_refused_by_name(caller, case):
    body, param, text = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as caught:
        caller.post("/chat/completions", body={"model": MODEL, "messages": HELLO, **body}, cast_to=object)
    assert body_of(caught.value)["param"] == param
    assert text in body_of(caught.value)["message"]


def test_where_the_template_renders_no_tools_they_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, HELLO, tools=[CLOCK])
    assert body_of(caught.value)["param"] == "tools"
    assert "renders no tools" in body_of(caught.value)["message"]
    assert ask(client, HELLO, tools=[CLOCK], tool_choice="none", max_tokens=1).choices


def test_where_calls_are_written_in_another_form_tools_are_refused_by_name():
    from engines.serving.openai.errors import ApiError
    from engines.serving.openai.request.schema import ChatCompletionRequest
    from engines.serving.openai.request.tools import tool_wish
    from export.processor.text.template import ChatTemplate

    asked = ChatCompletionRequest.model_validate({"messages": HELLO, "tools": [CLOCK]})
    assert tool_wish(asked, ChatTemplate(TEMPLATE, "x", {})) is not None
    with pytest.raises(ApiError, match="another form"):
        tool_wish(asked, ChatTemplate(OTHER_FORM, "x", {}))


# --- the reader ---------------------------------------------------------------------------------------------------


def read(pieces, max_calls=None):
    reader = ToolCallReader(max_calls)
    told = ""
    calls: list[Any] = []
    for piece in pieces:
        text, found = reader.push(piece)
        told, calls = told + text, calls + found
        if reader.is_full:
            break
    text, found = reader.finish()
    return told + text, [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls + found
    ]


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "</tool>"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "told", "names"),
    [
        ("plain text \n", "plain text \n", []),
        ("", "", []),
        (f"a {CALL} b", "a b", ["f"]),
        (f"{CALL}\n{CALL}\n", "", ["f", "f"]),
        ("<tool_call>\n{", "<tool_call>\n{", []),
        ('<tool_call>{"name": "f"}', "", ["f"]),  # an answer that ends before the mark does
        ("<tool_call>no</tool_call> x", "<tool_call>no</tool_call> x", []),
        ('<tool_call>{"name": 1}</tool_call>', '<tool_call>{"name": 1}</tool_call>', []),
        ("a <tool_cal", "a <tool_cal", []),
        ("1 < 2 <tool> </tool_call>", "1 < 2 <tool> </tool_call>", []),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "<tool_call>" + "[" * 100_000 + "</tool_call>", []),
    ],
    ids=range(11),
)
def test_calls_are_told_from_text(text, told, names):
    assert [read([text])[0], [name for name, _ in read([text])[1]]] == [told, names]


@given(
    parts=st.lists(
        st.sampled_from([CALL, "<tool_call>", "</tool_call>", "{", " ", "\n", "a<", "tool"]), max_size=8
    ),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    max_calls=st.sampled_from([None, 1]),
)
def test_however_a_text_is_cut_the_same_is_told(parts, cuts, max_calls):
    text = "".join(parts)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert read(pieces, max_calls) == read([text], max_calls)
