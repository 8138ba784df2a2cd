import json
import sys
import time
from typing import Any

import pytest

from export.errors import UserError
from export.processor import template as template_module
from export.processor.template import ChatTemplate, load_chat_template
from tests.support.chats import PUBLISHED_STYLE_TEMPLATE

MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image", "image": ""}, {"type": "text", "text": "What is <b>this</b>?"}],
    },
    {"role": "assistant", "content": "A cat.\n"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "that?"}]},
]
TEMPLATES = {
    "published": PUBLISHED_STYLE_TEMPLATE,
    "line ends around blocks": "  {% for m in messages %}\n    {% if loop.index == 2 %}\n{% continue %}\n"
    "  {% endif %}\n{{ m.role }}\n  {% endfor %}\n",
    "json": "{{ messages | tojson }}{{ messages[1] | tojson(indent=2) }}",
    "named tokens": "{{ eos_token }}{{ pad_token }}{{ bos_token }}{{ tools is none }}{{ documents is none }}",
    "clock": "{{ strftime_now('%Y') }}",
    "missing": "[{{ nothing }}]",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompted", [True, False])
def test_rendering_equals_transformers(checkpoint_directory, name, prompted):
    from transformers import AutoTokenizer

    source = TEMPLATES[name]
    theirs = AutoTokenizer.from_pretrained(checkpoint_directory)
    expected = theirs.apply_chat_template(
        MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=prompted
    )
    ours = ChatTemplate(source, "test", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    assert ours.render(MESSAGES, add_generation_prompt=prompted) == expected


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_template_is_found_in_every_place_and_the_newest_place_wins(tmp_path):
    with pytest.raises(UserError, match="has no chat template"):
        load_chat_template(tmp_path)
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "listed {{ eos_token }}"},
    ]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named, "eos_token": {"content": "<end>"}})
    assert load_chat_template(tmp_path).render([]) == "listed <end>"
    write(
        tmp_path / "tokenizer_config.json", {"chat_template": "config {{ eos_token }}", "eos_token": "<end>"}
    )
    assert load_chat_template(tmp_path).render([]) == "config <end>"
    write(tmp_path / "chat_template.json", {"chat_template": "json {{ eos_token }}"})
    assert load_chat_template(tmp_path).render([]) == "json <end>"
    write(tmp_path / "chat_template.jinja", "jinja {{ eos_token }}")
    assert load_chat_template(tmp_path).render([]) == "jinja <end>"


def test_a_template_that_is_no_text_is_an_error(tmp_path):
    write(tmp_path / "chat_template.json", {"chat_template": 7})
    with pytest.raises(UserError, match="must be a string, found int"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "cannot be compiled"),
        ("{{ raise_exception('only one image, please') }}", "only one image, please"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[5].role }}", "failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{{ 'a' * 100000000000 }}", "not allowed"),
        ("{{ 100000000000 * [1] }}", "not allowed"),
        ("{{ 9 ** 9 ** 9 }}", "not allowed"),
        ("{% for i in range(1000000000) %}{% endfor %}", "[Rr]ange"),
    ],
)
def test_a_broken_or_hostile_template_is_one_clear_error(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source, "test", {}).render([])


def test_ordinary_arithmetic_is_allowed():
    assert (
        ChatTemplate("{{ 3 * 1000000000 }} {{ '-' * 5 }} {{ 2 ** 10 }}", "test", {}).render([])
        == "3000000000 ----- 1024"
    )


def test_a_template_that_writes_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_RENDERED_CHARACTERS", 1000)
    with pytest.raises(UserError, match="writes more than 1000 characters"):
        ChatTemplate("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "test", {}).render([])


def test_a_template_that_loops_without_writing_is_stopped(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_RENDER_SECONDS", 0.2)
    source = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    trace_before = sys.gettrace()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"ran longer than 0\.2 s"):
        ChatTemplate(source, "test", {}).render([])
    assert time.monotonic() - start < 5
    assert sys.gettrace() is trace_before


def test_a_huge_template_is_refused():
    with pytest.raises(UserError, match="larger than"):
        ChatTemplate("x" * (2**20 + 1), "test", {})
