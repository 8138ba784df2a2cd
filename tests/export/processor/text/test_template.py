import json
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from export.errors import UserError
from export.processor.text import template as template_module
from export.processor.text import template_process
from export.processor.text.template import ChatTemplate, load_chat_template
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


ENDLESS = {
    "a filter that counts words": "{{ (['a ' * 100000] * 100000) | map('wordcount') | sum }}",
    "a filter that wraps": "{{ ('aaaaaaaaaa' * 100000) | wordwrap(1) | wordwrap(1) | wordwrap(1) }}",
    "a constant, computed while compiling": "{{ 'aaaaaaaaaa' | center(1000000) | wordwrap(1) | wordwrap(1)"
    " | wordwrap(1) }}",
    "loops that write nothing": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "one slice": "{{ (range(99999) | list * 1000) | slice(3) | map('sort') | map('join') | join | length }}",
}
HUGE = {
    "doubling": "{% set ns = namespace(x='x' * 1000000) %}{% for i in range(40) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a constant": "{{ 'a' | center(3000000000) }}",
    "a format": "{{ '%03000000000d' % 1 }}",
    "a method": "{{ 'a'.ljust(3000000000) }}",
    "replacing": "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_never_ends_is_ended_and_the_next_is_rendered(monkeypatch, kind):
    monkeypatch.setattr(template_module, "MAX_RENDER_SECONDS", 1.0)
    assert ChatTemplate("{{ 1 }}", "test", {}).render([]) == "1"
    start = time.monotonic()
    with pytest.raises(UserError, match=r"ran longer than 1 s|more memory"):
        ChatTemplate(ENDLESS[kind], "test", {}).render([])
    assert time.monotonic() - start < 2.5
    monkeypatch.undo()
    assert ChatTemplate("{{ 2 }}", "test", {}).render([]) == "2"


@pytest.mark.parametrize("kind", HUGE)
def test_a_template_that_fills_the_memory_fills_only_its_own(kind):
    with pytest.raises(UserError, match=r"more memory than a template may take|ended the process"):
        ChatTemplate(HUGE[kind], "test", {}).render([])
    most_kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most_kilobytes < 2 << 20
    assert ChatTemplate("{{ 2 }}", "test", {}).render([]) == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{% if a %}" + "{% elif a %}" * 4000 + "{% endif %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in b %}" * 200 + "{% endfor %}" * 200,
        "{{ " + "-" * 50_000 + "1 }}",
        "{{ " + "1+" * 20_000 + "1 }}",
        "{{ 1 | nonsense }}",
        "{{ 1 is nonsense }}",
    ],
)
def test_a_template_that_python_cannot_compile_is_one_clear_error(source):
    with pytest.raises(UserError, match=r"^test: the chat template (cannot be compiled|failed)") as caught:
        ChatTemplate(source, "test", {}).render([])
    assert len(str(caught.value)) < 1000


def test_the_function_that_writes_text_of_its_own_is_not_there():
    with pytest.raises(UserError, match="lipsum"):
        ChatTemplate("{{ lipsum(n=200000) | length }}", "test", {}).render([])


def test_an_error_of_rendering_names_the_file_and_not_its_place(tmp_path):
    write(tmp_path / "chat_template.jinja", "{{ 1 / 0 }}")
    with pytest.raises(UserError, match=r"^chat_template\.jinja: ") as caught:
        load_chat_template(tmp_path).render([])
    assert str(tmp_path) not in str(caught.value)


def test_a_render_in_the_other_process_costs_less_than_a_millisecond():
    template = ChatTemplate(PUBLISHED_STYLE_TEMPLATE, "test", {})
    template.render(MESSAGES)

    def seconds():
        start = time.perf_counter()
        template.render(MESSAGES)
        return time.perf_counter() - start

    assert statistics.median(seconds() for _ in range(200)) < 0.001


def test_many_threads_render_at_once_and_a_fork_does_too():
    def render(n):
        return ChatTemplate("{{ messages[0].role }}", "test", {}).render([{"role": str(n)}])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(render, range(100))) == [str(n) for n in range(100)]
    with multiprocessing.get_context("fork").Pool(2) as forks:
        assert forks.map(_rendered_role, ["a", "b", "c"]) == ["a", "b", "c"]
    assert render(7) == "7"


def _rendered_role(role):
    return ChatTemplate("{{ messages[0].role }}", "test", {}).render([{"role": role}])


def test_the_process_sees_nothing_of_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('read from the current directory')")
    (tmp_path / "jinja2.py").write_text("raise RuntimeError('read from the current directory')")
    monkeypatch.chdir(tmp_path)
    template_process.TEMPLATE_PROCESS.close()
    assert ChatTemplate("{{ 2 }}", "test", {}).render([]) == "2"
