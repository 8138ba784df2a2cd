"""One table of requests for both servers, OpenAI's API and the Triton model: each means the same in both.

A row is written once, in OpenAI's names; what Triton's inputs call otherwise stands in `_TRITON`.
"""

import asyncio
import base64
import json
import re
import shutil
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from engines.open import choose_engine
from engines.serving.openai.app import make_app
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings
from engines.serving.triton.interface import CHAT_INPUTS
from engines.serving.triton.repository import write_repository
from engines.store.compatibility import this_machine
from examples.demo import demo_questions
from examples.tiny.tasks import make_sample
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from tests.support.fake_triton import Request, imported_models
from tests.support.pictures import encoded
from tests.support.serve import ROOT

HELLO = [{"role": "user", "content": "Hello"}]
SETTINGS = ServerSettings(num_slots=2, capacity=512, num_threads=1)
DTYPES = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_}
TYPES = {tensor.name: tensor.data_type for tensor in CHAT_INPUTS}
_TRITON = {
    "timeout": "timeout_seconds",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_JSON = {"messages", "logit_bias", "json_schema", "mm_processor_kwargs", "chat_template_kwargs", "tools"}
TOOLS_IN_FRONT = """{%- if tools -%}<|im_start|>system
<tool_call>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif -%}"""
TOOL = {"type": "function", "function": {"name": "f", "description": "Tells f."}}
SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["count", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("same")
    shutil.copytree(ROOT / "models" / "qwen2-vl-tiny", directory / "checkpoint")
    config_file = directory / "checkpoint" / "tokenizer_config.json"
    template = json.loads(config_file.read_text())["chat_template"]
    (directory / "checkpoint" / "chat_template.jinja").write_text(TOOLS_IN_FRONT + template)
    export_checkpoint(directory / "checkpoint", directory / "bundle")
    return open_bundle(directory / "bundle")


@pytest.fixture(scope="module")
def openai(bundle):
    """Asks OpenAI's API: (text, why it ended, what it located), or what was refused."""
    chosen = choose_engine(bundle, None, num_slots=2, capacity=512, machine=this_machine())
    with ServedModel(bundle, chosen, SETTINGS) as model, asyncio.Runner() as runner:
        app = make_app(model, "tiny", with_page=False)
        usage: dict[str, Any] = {}

        def ask(fields):
            body = json.dumps({"messages": HELLO, **fields}).encode()
            status, content = runner.run(call_local(app.state.chat, body, "x"))
            if status == 400:
                return f"{content['error']['param']}: {content['error']['message']}"
            assert status == 200, content
            [choice] = content["choices"]
            usage.update(content["usage"])
            return choice["message"]["content"], choice["finish_reason"], choice.get("located", [])

        ask.usage = usage  # type: ignore[attr-defined]
        yield ask
        app.state.chat.close()


@pytest.fixture(scope="module")
def triton(bundle, tmp_path_factory):
    """Asks the Triton model, in the same way."""
    repository = tmp_path_factory.mktemp("same") / "repository"
    write_repository(bundle, repository, SETTINGS, allow_unvalidated=True)
    arguments = {
        "model_config": json.dumps({"parameters": {"settings": {"string_value": SETTINGS.to_json()}}}),
        "model_repository": str(repository / "qwen2_vl"),
        "model_version": "1",
        "model_name": "qwen2_vl",
    }
    with imported_models() as models:
        model = models.model.TritonPythonModel()
        model.initialize(arguments)

        def ask(fields):
            given = {_TRITON.get(name, name): value for name, value in {"messages": HELLO, **fields}.items()}
            tensors = {name: tensor(name, value) for name, value in given.items() if name in TYPES}
            others = {name: value for name, value in given.items() if name not in TYPES}
            request = Request(tensors, json.dumps(others))
            model.execute([request])
            [response] = request.sender.wait()
            if response.error is not None:
                return response.error.message
            reason = response.text("finish_reason")
            located = json.loads(response.text("usage")).get("located", [])
            return response.text("text"), {"capacity": "length"}.get(reason, reason), located

        yield ask
        model.finalize()


def tensor(name, value):
    value = json.dumps(value) if name in _JSON and not isinstance(value, str) else value
    values = value if isinstance(value, list) else [value]
    if TYPES[name] == "TYPE_STRING":
        return np.array([str(one).encode() for one in values], np.object_)
    return np.array(values, DTYPES[TYPES[name]])


def shown(question, **budget):
    """A question's messages, as both servers take them."""

    def part(kind, path, name):
        data = base64.b64encode(path.read_bytes()).decode()
        return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{name};base64,{data}"}, **budget}

    content = [part("image", path, "image/png") for path in question.images]
    content += [part("video", path, "video/mp4") for path in question.videos]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]


def shape_to_find(size_factor=1):
    """A picture of one shape, and the question where it is."""
    sample = next(s for s in (make_sample("box", (3, n)) for n in range(20)) if len(s.media) == 1)
    frame = Image.fromarray(sample.media[0].frames[0])
    sent = encoded(frame.resize((size_factor * frame.width, size_factor * frame.height)), "PNG")
    url = "data:image/png;base64," + base64.b64encode(sent).decode()
    budget = {"max_pixels": frame.width * frame.height}
    content = [
        {"type": "image_url", "image_url": {"url": url}, **budget},
        {"type": "text", "text": sample.prompt},
    ]
    return [{"role": "user", "content": content}], frame.size


GATE, VIDEO = demo_questions()[0], next(question for question in demo_questions() if question.videos)
DRAWN = {"temperature": 1.5, "top_k": 0, "seed": 3, "max_tokens": 8}

MEANT = {
    "nothing but messages": {},
    "a picture": {"messages": shown(GATE)},
    "a box": {"messages": shape_to_find()[0]},
    "a box with marks": {"messages": shape_to_find()[0], "skip_special_tokens": False},
    "a picture with a budget": {"messages": shown(GATE, max_pixels=28 * 28 * 4)},
    "a budget of all pictures": {
        "messages": shown(GATE), "mm_processor_kwargs": {"max_pixels": 3136}, "max_tokens": 12, "ignore_eos": True,
    },
    "a budget of all videos": {
        "messages": shown(VIDEO), "mm_processor_kwargs": {"video_end": 0.5}, "max_tokens": 12, "ignore_eos": True,
    },
    "pictures with numbers": {
        "messages": shown(GATE), "chat_template_kwargs": {"add_vision_id": True}, "max_tokens": 12, "ignore_eos": True,
    },
    "tools": {"tools": [TOOL], "max_tokens": 12, "ignore_eos": True},
    "going on with an answer": {
        "messages": [*shown(GATE), {"role": "assistant", "content": "GAT"}], "continue_final_message": True,
    },
    "a video": {"messages": shown(VIDEO)},
    "several turns": {"messages": [*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]},
    "a developer's message": {"messages": [{"role": "developer", "content": "Be brief."}, *HELLO]},
    "parts of text": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
    "few tokens": {"max_tokens": 3, "ignore_eos": True},
    "a seed": DRAWN,
    "min_p": {**DRAWN, "min_p": 0.2},
    "top_p": {**DRAWN, "top_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 2.0, "max_tokens": 12, "ignore_eos": True},
    "presence_penalty": {"presence_penalty": 2.0, "max_tokens": 12, "ignore_eos": True},
    "frequency_penalty": {"frequency_penalty": -2.0, "max_tokens": 12, "ignore_eos": True},
    "no_repeat_ngram_size": {"logit_bias": {"33": 100}, "no_repeat_ngram_size": 2, "max_tokens": 6},
    "logit_bias": {"logit_bias": {"33": 100}, "max_tokens": 4},
    "min_tokens": {"messages": shown(GATE), "min_tokens": 12, "max_tokens": 20},
    "a stop string": {"messages": shown(GATE), "stop": ["TE7"]},
    "a stop token": {"logit_bias": {"33": 100}, "stop_token_ids": [33], "max_tokens": 5},
    "special tokens told": {
        "messages": shown(GATE), "skip_special_tokens": False, "ignore_eos": True, "max_tokens": 20,
    },
    "special tokens left out": {"messages": shown(GATE), "ignore_eos": True, "max_tokens": 20},
    "a schema": {"guided_json": SCHEMA, "max_tokens": 60},
    "a schema about a picture": {"messages": shown(GATE), "guided_json": SCHEMA, "max_tokens": 60},
    "a schema, drawn": {**DRAWN, "guided_json": SCHEMA, "max_tokens": 60},
    "a regular expression": {"guided_regex": "[0-9]{3}-[a-c]", "max_tokens": 60},
    "choices": {"guided_choice": ["a house", "ein Haus — groß"], "max_tokens": 60},
    "a grammar": {"guided_grammar": 'root ::= ("yes" | "no") "!"', "max_tokens": 60},
    "a form that is cut": {"guided_regex": "(ab){30}", "max_tokens": 5},
    "a form before other wishes": {"guided_regex": "(ab){5}", "ignore_eos": True, "min_tokens": 30, "max_tokens": 60},
    "time enough": {"timeout": 30, "max_tokens": 2},
}  # fmt: skip


@pytest.mark.parametrize("row", MEANT)
def test_a_request_means_the_same_to_both_servers(openai, triton, row):
    told = openai(MEANT[row])
    assert isinstance(told, tuple), told
    assert triton(MEANT[row]) == told


@pytest.mark.parametrize("size_factor", [1, 3])
def test_boxes_are_told_in_pixels_of_the_picture_as_it_was_sent(openai, triton, size_factor):
    messages, (width, height) = shape_to_find(size_factor)
    text, _, [found] = openai({"messages": messages})
    assert "<|box_start|>" not in text
    assert (found["kind"], len(found["pixels"])) == ("box", 2)
    for (x, y), pixel in zip(found["thousandths"], found["pixels"], strict=True):
        assert pixel == pytest.approx([size_factor * width * x / 1000, size_factor * height * y / 1000])
    assert triton({"messages": messages})[2] == [found]


def test_the_rows_differ_and_forms_are_met(openai):
    answers = {row: openai(fields) for row, fields in MEANT.items()}
    assert answers["a picture"] == (GATE.answer, "stop", [])
    assert answers["a video"] == (VIDEO.answer, "stop", [])
    jsonschema.validate(json.loads(answers["a schema"][0]), SCHEMA)
    assert re.fullmatch("[0-9]{3}-[a-c]", answers["a regular expression"][0])
    assert answers["choices"][0] in {"a house", "ein Haus — groß"}
    assert answers["a form that is cut"][1] == "length"
    assert "<|im_end|>" in answers["special tokens told"][0]
    assert answers["going on with an answer"][0] == GATE.answer.removeprefix("GAT")
    assert len({answer[:2] for answer in answers.values()}) > len(answers) // 2


@pytest.mark.parametrize(
    "wish",
    [
        {"mm_processor_kwargs": {"max_pixels": 28 * 28 * 4}},
        {"chat_template_kwargs": {"add_vision_id": True}},
        {"tools": [TOOL]},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_what_is_asked_of_the_prompt_reaches_the_model(openai, wish):
    assert openai({"messages": shown(GATE), **wish})
    num_tokens = openai.usage["prompt_tokens"]
    assert openai({"messages": shown(GATE)})
    assert openai.usage["prompt_tokens"] != num_tokens


DEEP = json.loads("[" * 600 + "]" * 600)
# What is asked, and what each server must name in its refusal.
REFUSED = {
    "an unknown field": ({"wish": 1}, "wish"),
    "temperature": ({"temperature": -1}, "temperature"),
    "top_p": ({"top_p": 1.5}, "top_p"),
    "min_p": ({"min_p": 2}, "min_p"),
    "presence_penalty": ({"presence_penalty": 3}, "presence_penalty"),
    "a bias": ({"logit_bias": {"1": 101}}, "logit_bias"),
    "a bias by no id": ({"logit_bias": {"a": 1}}, "logit_bias"),
    "biases": ({"logit_bias": dict.fromkeys(map(str, range(301)), 1)}, "logit_bias"),
    "a stop token": ({"stop_token_ids": [-1]}, "stop_token_ids"),
    "stop tokens": ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    "too many tokens": ({"max_tokens": 1 << 20}, "max_tokens"),
    "too much time": ({"timeout": 1e9}, "timeout"),
    "an empty stop string": ({"stop": [""]}, "stop"),
    "a seed": ({"seed": -1}, "seed"),
    "two forms": ({"guided_regex": "a", "guided_choice": ["a"]}, "one form"),
    "an expression": ({"guided_regex": "("}, "regex"),
    "an empty choice": ({"guided_choice": ["a", ""]}, "choice"),
    "a grammar": ({"guided_grammar": "start: x"}, "grammar"),
    "a schema of no type": ({"guided_json": {"type": "nope"}}, "nope"),
    "a schema that nothing meets": (
        {"guided_json": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
        "nsatisfiable",
    ),
    "a schema that is no JSON": ({"guided_json": "{"}, "not JSON"),
    "a schema too large": ({"guided_json": {"enum": ["x" * 70_000]}}, "at most"),
    "a role": ({"messages": [{"role": "oracle", "content": "x"}]}, "role"),
    "a key of a message": ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "mood"),
    "a web address": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/b"}}]}]},
        "fetches no web addresses",
    ),
    "a path": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
        "path is never read",
    ),
    "a variable of no template": ({"chat_template_kwargs": {"mood": 1}}, "does not read mood"),
    "the template's own variable": ({"chat_template_kwargs": {"messages": []}}, "does not read messages"),
    "no object of variables": ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    "going on with no answer": ({"continue_final_message": True}, "last message of the assistant"),
    "going on with an empty answer": (
        {"messages": [*HELLO, {"role": "assistant", "content": []}], "continue_final_message": True},
        "last message of the assistant",
    ),
    "no list of tools": ({"tools": {"a": 1}}, "tools"),
    "a budget of all that is none": ({"mm_processor_kwargs": {"max_pixel": 784}}, "max_pixel"),
    "a budget of all too large": (
        {"messages": shown(GATE), "mm_processor_kwargs": {"max_pixels": 1 << 30}}, "max_pixels",
    ),
    "a call too deep": (
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP}]}]}, "levels deep",
    ),
    "a variable too deep": ({"chat_template_kwargs": {"add_vision_id": DEEP}}, "levels deep"),
    "a budget too large": ({"messages": shown(GATE, max_pixels=1 << 30)}, "max_pixels"),
    "a prompt too long": ({"messages": [{"role": "user", "content": "a b " * 2000}]}, "512"),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_a_request_is_refused_by_both_servers_by_the_same_name(openai, triton, row):
    fields, name = REFUSED[row]
    for told in (openai(fields), triton(fields)):
        assert isinstance(told, str), told
        assert name in told


def test_every_input_of_the_triton_model_has_a_row():
    asked = {_TRITON.get(name, name) for fields in MEANT.values() for name in fields}
    of_transport = {"media", "stream"}
    assert {tensor.name for tensor in CHAT_INPUTS} - asked == of_transport
