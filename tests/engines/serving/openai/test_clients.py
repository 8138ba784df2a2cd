"""Clients that nobody here wrote ask `qv-export serve` over loopback: document parsing, LangChain, a load generator."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engines.serving.openai.served import MODEL, QUESTIONS
from tests.support.serve import ROOT

LOAD_GENERATOR = Path(sys.prefix) / "load-generator" / "bin" / "guidellm"

# --- mineru-vl-utils ----------------------------------------------------------------------------------------------

LAYOUT = (
    "<|box_start|>050 050 950 300<|box_end|><|ref_start|>text<|ref_end|><|rotate_up|>\n"
    "<|box_start|>050 350 950 600<|box_end|><|ref_start|>table<|ref_end|><|rotate_up|>\n"
    "<|box_start|>050 650 950 900<|box_end|><|ref_start|>equation<|ref_end|><|rotate_up|>"
)


@pytest.fixture
def parser(server):
    mineru = pytest.importorskip("mineru_vl_utils", reason="needs mineru-vl-utils: pip install '.[dev]'")
    found = mineru.MinerUClient("http-client", server_url=server.url, max_retries=0, use_tqdm=False)
    # The small checkpoint knows no documents: its answers are noise, and may be cut.
    found.client.allow_truncated_content = True
    return found


@pytest.fixture
def page():
    return Image.effect_noise((300, 400), 60).convert("RGB")


def test_a_document_is_parsed_in_two_steps_without_an_error_of_the_server(parser, page, monkeypatch):
    statuses, read = [], parser.client.get_response_data

    def heard(response: Any) -> Any:
        statuses.append(response.status_code)
        return read(response)

    monkeypatch.setattr(parser.client, "get_response_data", heard)
    assert isinstance(list(parser.two_step_extract(page)), list)
    assert set(statuses) == {200}


def test_every_kind_of_block_that_a_layout_names_is_read(parser, page, monkeypatch):
    """What a trained checkpoint would answer to the first step is forced by the form of an answer."""
    build, asked = parser.client.build_request_body, []

    def with_layout(**wishes: Any) -> Any:
        body = build(**wishes)
        if "Layout" in wishes["prompt"]:
            body["structured_outputs"] = {"choice": [LAYOUT]}
            body["max_tokens"] = body["max_completion_tokens"] = 400
        asked.append(body)
        return body

    monkeypatch.setattr(parser.client, "build_request_body", with_layout)
    blocks = list(parser.two_step_extract(page))
    assert len(asked) == 4
    assert {block["type"] for block in blocks} <= {"text", "table", "equation"}
    assert [body["vllm_xargs"]["no_repeat_ngram_size"] for body in asked] == [100] * 4
    assert {body["frequency_penalty"] for body in asked} == {0.0, 0.005, 0.05}
    assert {body["skip_special_tokens"] for body in asked} == {False}


# --- LangChain ----------------------------------------------------------------------------------------------------


def test_langchain_reads_a_picture_calls_with_a_schema_and_is_told_of_mistakes(server):
    langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai: pip install '.[dev]'")
    question = QUESTIONS[0]
    done = subprocess.run(
        [sys.executable, ROOT / "examples/serve/langchain_client.py", question.images[0], question.prompt],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "BASE_URL": f"{server.url}/v1"},
    )
    assert done.stdout.strip() == question.answer, done.stderr
    model = langchain.ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    schema = {
        "title": "count",
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["count"],
        "additionalProperties": False,
    }
    formed = model.with_structured_output(schema, method="json_schema").invoke("How many?")
    assert 0 <= formed["count"] <= 99
    with pytest.raises(Exception, match="renders no tools"):
        model.bind_tools([{"type": "function", "function": {"name": "clock"}}]).invoke("When?")


# --- guidellm -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not LOAD_GENERATOR.exists(), reason="needs a load generator of its own: make load-generator"
)
@pytest.mark.parametrize(
    "data",
    [
        "kind=synthetic_text,prompt_tokens=24,output_tokens=8",
        "kind=synthetic_image,width=112,height=112,output_tokens=8",
    ],
)
def test_a_load_generator_measures_the_server_without_an_error(server, tmp_path, data):
    report = tmp_path / "report.json"
    options = {
        "backend": f"kind=openai_http,target={server.url},model={MODEL}",
        "tokenizer": f"kind=huggingface_auto,model={ROOT / 'models' / MODEL}",
        "profile": "kind=concurrent,streams=4",
        "constraint": "kind=max_requests,count=24",
        "data": data,
        "output": f"kind=json,path={report}",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [LOAD_GENERATOR, "run", "--disable-console", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [measured] = json.loads(report.read_text())["benchmarks"]
    totals = measured["metrics"]["request_totals"]
    assert totals["errored"] == 0
    assert totals["successful"] == 24
