"""The four files of a report, of a failing and of a passing run; and the page in a real browser, where there is one."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from export.directory_swap import replacing_directory, require_replaceable
from export.errors import UserError
from validate.cases.builtin import Case, Text
from validate.cases.prompts import prepare_case
from validate.report.render import pictures_of_worst_cases, write_report
from validate.report.report import REPORT_DIRECTORY
from validate.run import validate
from validate.selftest.mutations import mutations
from validate.tasks.quality import compare_quality

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def rendered(plan, exported, directory):
    """Run a plan and write its report; returns the report's object."""
    report = validate(plan, exported.workspace(directory), lambda *_: None)
    (directory / "report").mkdir()
    write_report(
        report, directory / "report", pictures_of_worst_cases(report, plan.cases, plan.image_settings)
    )
    return report


@pytest.fixture(scope="module")
def failing(exported, tmp_path_factory):
    """A run with a fault in the vision graph and a case outside of the profile: (report, directory)."""
    directory = tmp_path_factory.mktemp("failing")
    mutation = next(m for m in mutations(exported.config) if m.name == "segment_boundary_dropped")
    plan = exported.mutated(mutation, directory / "mutated")
    long = prepare_case(Case("too_long", ((Text(300),),)), exported.config, plan.image_settings)
    report = rendered(replace(plan, cases=(*plan.cases, long)), exported, directory)
    return report, directory / "report"


@pytest.fixture(scope="module")
def passing(exported, tmp_path_factory):
    directory = tmp_path_factory.mktemp("passing")
    return rendered(exported.plan, exported, directory), directory / "report"


def test_the_json_is_standard_and_says_it_all(failing):
    report, directory = failing
    content = json.loads((directory / "report.json").read_text(), parse_constant=pytest.fail)
    assert (content["format"], content["format_version"]) == ("qv-export validation", 3)
    assert content["verdict"]["passed"] is False
    assert content["verdict"]["num_failed"] == len(content["failures"]) == len(report.failures)
    assert content["first_divergence"]["node"] == "/blocks.0/attn/QvPatchAttention"
    case = next(case for case in content["cases"] if case["name"] == "images_of_unequal_size")
    metrics = case["measured"]["tensors"]["decode_logits"]
    assert {
        "max_abs",
        "mean_abs",
        "relative_l2",
        "worst_token_cosine",
        "worst_kl",
        "top5_agreement",
    } <= metrics.keys()
    assert len(case["measured"]["error_by_step"]) == 6


def test_junit_has_a_test_a_gate_and_skips_what_lies_outside(failing):
    report, directory = failing
    suites = ET.parse(directory / "junit.xml").getroot()
    tests = list(suites.iter("testcase"))
    assert len(tests) == len(report.gates) + 1
    assert len(list(suites.iter("failure"))) == len(report.failures)
    [skipped] = suites.iter("skipped")
    assert "exceed the context" in skipped.get("message", "")
    packing = next(test for test in tests if test.get("name") == "packing")
    message = packing[0].get("message", "")
    assert re.fullmatch(r"properties: packing is \S+, allowed \S+, noise \S+", message)


def test_the_markdown_names_the_first_divergence(failing, passing):
    text = (failing[1] / "summary.md").read_text()
    assert text.startswith("## qv-export validate: FAIL")
    assert "First divergence: vision, `/blocks.0/attn/QvPatchAttention` (QvPatchAttention)" in text
    passed = (passing[1] / "summary.md").read_text()
    assert passed.startswith("## qv-export validate: PASS")
    assert "First divergence" not in passed


def test_the_markdown_has_what_tasks_came_to(passing, tmp_path):
    quality = compare_quality([True, True, False], [True, False, False])
    write_report(replace(passing[0], task_quality=quality), tmp_path, {})
    assert f"\n{quality.sentence()}.\n" in (tmp_path / "summary.md").read_text()
    assert "tasks" not in (passing[1] / "summary.md").read_text()


def test_the_page_needs_nothing_from_outside_and_shows_the_worst_pictures(failing):
    page = (failing[1] / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert page.count("data:image/png") >= 3
    assert "outside profile: a prompt of 300 tokens" in html.unescape(page)


def test_names_are_escaped(failing, tmp_path):
    report, _ = failing
    hostile = replace(report, subject=replace(report.subject, source="<script>alert(1)</script>"))
    write_report(hostile, tmp_path, {})
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_a_verdict_is_what_a_bundle_keeps(passing):
    verdict = passing[0].verdict()
    assert verdict.passed is True
    assert verdict.num_failed == 0
    assert verdict.target == "onnxruntime"
    json.dumps(verdict.to_json(), allow_nan=False)


def browse(page, script, tmp_path):
    """Open a copy of the page with `script` at its end, 1280 x 720; returns the DOM and what the console said."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,720", "--enable-logging=stderr"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


MEASURE = """
const row = document.querySelector('#failures .fail');
document.body.dataset.bottom = row ? row.getBoundingClientRect().bottom : 0;
document.body.dataset.height = innerHeight;
document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
document.body.dataset.charts = [...document.querySelectorAll('svg')].filter(x => x.getBBox().width > 100).length;
document.body.dataset.broken = [...document.images].filter(x => !x.naturalWidth).length;
"""


@needs_chromium
def test_a_browser_shows_the_failing_case_without_scrolling(failing, tmp_path):
    dom, console = browse(failing[1] / "report.html", MEASURE, tmp_path)
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert console == []
    assert 0 < float(found["bottom"]) < float(found["height"])
    assert found["wide"] == "false"
    assert int(found["charts"]) >= 3
    assert found["broken"] == "0"


@needs_chromium
def test_what_the_console_says_would_be_heard(failing, tmp_path):
    _, console = browse(failing[1] / "report.html", "console.error('heard')", tmp_path)
    assert any("heard" in line for line in console)


def test_a_report_is_replaced_only_whole(tmp_path):
    output = tmp_path / "report"
    for text in ("first", "second"):
        with replacing_directory(output, REPORT_DIRECTORY) as scratch:
            (scratch / "report.json").write_text(text)
            (scratch / text).touch()
    assert sorted(path.name for path in output.iterdir()) == ["report.json", "second"]
    with pytest.raises(RuntimeError), replacing_directory(output, REPORT_DIRECTORY) as scratch:
        (scratch / "report.json").write_text("third")
        raise RuntimeError
    assert (output / "report.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_no_report_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a report"):
        require_replaceable(tmp_path, REPORT_DIRECTORY)
    with pytest.raises(UserError, match="not a directory"):
        require_replaceable(tmp_path / "thesis.tex", REPORT_DIRECTORY)
