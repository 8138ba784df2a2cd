"""The four files of a report, of a failing and of a passing run; and the page in a real browser, where there is one."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from export.errors import UserError
from export.files.directory_swap import replacing_directory, require_replaceable
from validate.cases.builtin import Case, Text
from validate.cases.prompts import prepare_case
from validate.report import render
from validate.report.render import images_of_worst_cases, write_report
from validate.report.report import REPORT_DIRECTORY
from validate.report.words import _answer_text, samples_of_cases
from validate.run.validation import run_validation
from validate.self_test.mutations import mutations
from validate.tasks.quality import compare_quality

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def rendered(plan, exported, directory):
    """Run a plan and write its report; returns the report's object."""
    report = run_validation(plan, exported.workspace(directory), lambda *_: None)
    (directory / "report").mkdir()
    write_report(report, directory / "report", images_of_worst_cases(report, plan.cases, plan.image_settings))
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


def test_text_of_others_reaches_no_report_raw(passing, tmp_path):
    hostile = "<img src=x onerror=alert(1)>\x1b]0;owned\x07 | [a](javascript:b) \x00\ud800\nsecond"
    report = replace(
        passing[0],
        subject=replace(passing[0].subject, source=hostile),
        properties=(
            replace(passing[0].properties[0], passed=False, gate=hostile, detail=hostile, value=None),
        ),
    )
    write_report(report, tmp_path, {})
    for path in tmp_path.iterdir():
        text = path.read_bytes().decode("utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), path
    names = [test.get("name") for test in ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")]
    assert any("\\x1b]0;owned\\x07" in str(name) for name in names)
    summary = (tmp_path / "summary.md").read_text()
    assert r"\<img src=x onerror=alert(1)\>\\x1b\]0;owned" in summary
    assert not re.search(r"(?<!\\)[<\[]", summary)
    assert "<img src=x" not in (tmp_path / "report.html").read_text()


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


def test_scales_and_axes_are_named(failing):
    page = (failing[1] / "report.html").read_text()
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) >= 3
    for chart in charts:
        assert re.search(r'class="label axis"[^>]*>[^<]*logarithmic', chart)
    shares = re.findall(r">(0\.01|0\.1|1|10|100)</text>", charts[0])
    assert shares[:3] == ["0.01", "0.1", "1"]


def test_no_verdict_is_told_by_colour_alone(failing, passing):
    failed, passed = ((directory / "report.html").read_text() for _, directory in (failing, passing))
    assert "✗ fail" in failed
    assert "– outside" in failed
    assert " fails</text>" in failed  # in the chart
    assert "✓ pass" in passed
    assert "✗" not in passed
    coloured = re.findall(r'class="(?:pass|fail)">([^<]*)', failed + passed)
    assert coloured
    assert all(text.startswith(("✓", "✗")) for text in coloured)


def test_what_was_asked_and_answered_stands_beside_the_pictures(failing, exported, tmp_path):
    report, _ = failing
    plan = exported.plan
    tokenizer = plan.bundle.processor.tokenizer
    samples = samples_of_cases(report, plan.cases, tokenizer, plan.bundle.generation_config.eos_token_ids)
    worst = next(case for case in report.cases if case.name == "images_of_unequal_size")
    [sample, *_] = samples[worst.name]
    assert sample.prompt.count("[image]") == 3
    assert len(worst.measured.expected[0]) == len(worst.measured.likeliest[0]) == 7
    hostile = replace(sample, reference="three <b>cats</b>", engine="two dogs")
    write_report(report, tmp_path, {}, {**samples, worst.name: [hostile]})
    page = (tmp_path / "report.html").read_text()
    assert page.count("three &lt;b&gt;cats&lt;/b&gt;") == page.count("two dogs") == 2
    assert "<dt>Engine ≠</dt>" in page


def test_words_end_where_the_answer_ends(exported):
    tokenizer = exported.plan.bundle.processor.tokenizer
    [a, b, c] = (tokenizer.encode(letter, add_special_tokens=False).ids[0] for letter in "abc")
    assert _answer_text(tokenizer, [a, b, c, a], {c}) == "ab"
    assert _answer_text(tokenizer, [a, b], ()) == "ab"


def themes(style):
    """The colours of a page by theme; print has its own copy of the light ones."""
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", block))
        for block in re.findall(r":root \{(.*?)\}", style)
    ]
    return [{**found[0], **colours} for colours in found]


def contrast(one, other):
    """Of WCAG 2.2: (lighter + 0.05) / (darker + 0.05), by relative luminance."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa_in_every_theme():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    report_style = (Path(render.__file__).parent / "page_style.css.jinja").read_text()
    for colours in themes(report_style):
        for name in ("ink", "soft", "good", "bad", "error", "noise", "limit"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
    inspect_page = (ROOT / "qv_export" / "pages" / "inspect.html.jinja").read_text()
    for colours in themes(inspect_page):
        for name in ("attention", "mlp", "embedding", "other"):
            assert contrast(colours[name], "#ffffff") >= 4.5, name


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


PRINTED = """
const cut = [...document.querySelectorAll('.scroll, figure')].filter(x => x.scrollWidth > x.clientWidth + 1);
document.body.dataset.cut = cut.length;
document.body.dataset.tables = document.querySelectorAll('.scroll table').length;
document.body.dataset.headless = [...document.querySelectorAll('table')].filter(x => !x.tHead).length;
"""


@needs_chromium
def test_paper_gets_every_column(failing, tmp_path):
    """The rules for print, applied to a window as wide as A4 across with its margins, at 96 dots an inch."""
    page = tmp_path / "printed.html"
    text = (failing[1] / "report.html").read_text()
    page.write_text(
        text.replace("@media print", "@media all").replace("max-width: none", "max-width: 1031px")
    )
    dom, _ = browse(page, PRINTED, tmp_path)
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', dom))
    assert int(found["tables"]) >= 2
    assert (found["cut"], found["headless"]) == ("0", "0")


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
