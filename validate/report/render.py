"""A report as files: JSON for machines, HTML for people, JUnit XML and Markdown for CI."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from export.processor.settings import ImageSettings
from export.wording import plain_line, plain_text
from validate.bisect.search import ProbeError, Trace
from validate.cases.prompts import PreparedCase, image_from_patches
from validate.gates.gates import GateResult
from validate.report.plots import Series, line_chart, ratio_chart
from validate.report.report import REPORT_NAME, CaseReport, Report
from validate.report.words import Sample
from validate.tasks.cost import QuantizationCost

NUM_WORST_CASES = 4
NUM_FAILURES_SHOWN = 12
_MAX_PICTURE_SIDE = 320
ERROR_AXIS = "worst token, relative L2 error"


def write_report(
    report: Report,
    directory: Path,
    pictures: Mapping[str, Sequence[str]],
    samples: Mapping[str, Sequence[Sample]] | None = None,
) -> None:
    """Write the four files.

    Args:
        report: the whole result.
        directory: that is there.
        pictures: data URIs by case, see `images_of_worst_cases`.
        samples: questions and answers by case, see `samples_of_cases`; None: none are shown.
    """
    content = json.dumps(report.to_json(), indent=1, allow_nan=False)
    (directory / REPORT_NAME).write_text(content + "\n", encoding="utf-8")
    page = html_from_report(report, pictures, samples or {})
    (directory / "report.html").write_text(plain_text(page, len(page)), encoding="utf-8")
    (directory / "junit.xml").write_text(junit_from_report(report), encoding="utf-8")
    (directory / "summary.md").write_text(markdown_from_report(report), encoding="utf-8")


def worst_cases(report: Report) -> list[CaseReport]:
    """Cases that used most of their allowed error, those without any number first: they raised."""
    judged = [case for case in report.cases if case.status != "outside_profile"]
    return sorted(judged, key=lambda case: -(math.inf if case.worst_ratio is None else case.worst_ratio))[
        :NUM_WORST_CASES
    ]


def images_of_worst_cases(
    report: Report, cases: Sequence[PreparedCase], settings: ImageSettings
) -> dict[str, list[str]]:
    """What the model saw in the worst cases, as PNG data URIs; the first frame of a video."""
    names = {case.name for case in worst_cases(report)}
    return {case.name: _images(case, settings) for case in cases if case.name in names}


def _images(case: PreparedCase, settings: ImageSettings) -> list[str]:
    uris = []
    for prompt in case.prompts:
        start = 0
        for grid in prompt.grids:
            frame = image_from_patches(prompt.patches[start:], grid, settings)
            start += grid[0] * grid[1] * grid[2]
            picture = Image.fromarray(frame)
            picture.thumbnail((_MAX_PICTURE_SIDE, _MAX_PICTURE_SIDE))
            file = io.BytesIO()
            picture.save(file, "PNG")
            uris.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"))
    return uris


def html_from_report(
    report: Report, pictures: Mapping[str, Sequence[str]], samples: Mapping[str, Sequence[Sample]]
) -> str:
    """One page without anything from outside: the verdict and what failed first, then charts, then tables."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["number"] = number_text
    worst = worst_cases(report)
    judged = [case for case in report.cases if case.worst_ratio is not None]
    ratios = [case.worst_ratio or 0.0 for case in judged]
    return environment.get_template("report.html.jinja").render(
        report=report,
        failures=shown_failures(report),
        first=report.divergence.first if report.divergence else None,
        case_chart=ratio_chart([case.name for case in judged], ratios, "Error by case") if judged else "",
        depth_charts=depth_charts(report.divergence.traces if report.divergence else ()),
        step_chart=_step_chart(worst),
        worst=worst,
        pictures=pictures,
        samples=samples,
    )


def shown_failures(report: Report) -> list[GateResult]:
    """The worst failure of each case, and each property that fails: what a first look needs."""
    seen: dict[str, GateResult] = {}
    for gate in report.failures:  # worst first
        seen.setdefault(gate.gate if gate.subject == "properties" else gate.subject, gate)
    return list(seen.values())[:NUM_FAILURES_SHOWN]


def depth_charts(traces: Sequence[Trace]) -> list[tuple[str, str]]:
    """(caption, chart) of each stage, and of the caches that it leaves."""
    parts = [
        (caption, errors)
        for trace in traces
        for caption, errors in ((trace.stage, trace.by_depth), (f"{trace.stage}, KV cache", trace.kv_cache))
    ]
    return [(caption, _depth_chart(caption, errors)) for caption, errors in parts if errors]


def _depth_chart(caption: str, errors: Sequence[ProbeError]) -> str:
    labels = [
        error.place.replace("blocks.", "block ")
        .replace("layers.", "layer ")
        .removeprefix("present_")
        .replace(".", " ")
        for error in errors
    ]
    return line_chart(
        labels,
        [
            # Drawn in this order: a sound engine's error may lie on the noise, and must be seen on it.
            Series("noise", [error.noise for error in errors], "noise"),
            Series("limit", [error.limit for error in errors], "limit"),
            Series("error", [error.error for error in errors], "error"),
        ],
        f"Error by depth: {caption}",
        ERROR_AXIS,
    )


def _step_chart(cases: Sequence[CaseReport]) -> str:
    for case in cases:
        if case.measured is not None and case.noise is not None and case.measured.error_by_step:
            return line_chart(
                [str(step) for step in range(len(case.measured.error_by_step))],
                [
                    Series("noise", case.noise.error_by_step, "noise"),
                    Series("error", case.measured.error_by_step, "error"),
                ],
                f"Error by decode step: {case.name}",
                ERROR_AXIS,
            )
    return ""


def number_text(value: float | None) -> str:
    """Three digits; a dash for what has no number."""
    if value is None:
        return "–"
    return f"{value:.3g}"


def junit_from_report(report: Report) -> str:
    """One test case a gate, one test suite a case; what lies outside of the profile is skipped."""
    root = ET.Element("testsuites", name="qv-export validate")
    suites: dict[str, list[GateResult]] = {}
    for gate in report.gates:
        suites.setdefault(gate.subject, []).append(gate)
    for name, gates in suites.items():
        num_failures = sum(not gate.passed for gate in gates)
        suite = ET.SubElement(root, "testsuite", name=name, tests=str(len(gates)), failures=str(num_failures))
        for gate in gates:
            test = ET.SubElement(suite, "testcase", classname=name, name=gate.gate)
            if not gate.passed:
                ET.SubElement(test, "failure", message=failure_text(gate)).text = gate.detail
    outside = {case.name: case.problem for case in report.cases if case.status == "outside_profile"}
    for name, problem in {**outside, **report.properties_outside}.items():
        suite = ET.SubElement(root, "testsuite", name=name, tests="1", failures="0", skipped="1")
        test = ET.SubElement(suite, "testcase", classname=name, name="inside_profile")
        ET.SubElement(test, "skipped", message=problem)
    for element in root.iter():  # XML has no control characters, not even escaped
        element.text = None if element.text is None else plain_text(element.text)
        element.attrib = {name: plain_text(value) for name, value in element.attrib.items()}
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def failure_text(gate: GateResult) -> str:
    """One failed gate in a line."""
    if gate.value is None:
        return f"{gate.subject}: {gate.gate}: {gate.detail}"
    noise = "" if gate.noise is None else f", noise {number_text(gate.noise)}"
    return (
        f"{gate.subject}: {gate.gate} is {number_text(gate.value)}, allowed {number_text(gate.limit)}{noise}"
    )


def markdown_from_report(report: Report) -> str:
    """What a CI job shows."""
    subject = report.subject
    counts = {status: sum(case.status == status for case in report.cases) for status in ("pass", "fail")}
    outside = len(report.cases) - sum(counts.values())
    source = _cell(subject.source)
    overview = (
        f"{source} ({_cell(subject.graph_dtype)}, key `{subject.bundle_key}`) on {subject.engine}, level "
        f"{subject.level}: {counts['pass']} cases pass, {counts['fail']} fail, {outside} outside of the profile; "
        f"{len(report.properties)} properties asked, {len(report.properties_outside)} outside; "
        f"{len(report.gates)} gates, {len(report.failures)} failed, limit {report.gate_settings.multiple:g} x noise."
    )
    lines = [
        f"## qv-export validate: {'PASS' if report.passed else 'FAIL'}",
        "",
        overview,
        "",
        *([sentence, ""] if (sentence := report.outside_sentence()) else []),
        *divergence_lines(report),
        *([report.task_quality.sentence() + ".", ""] if report.task_quality else []),
        *(_cost_lines(report.quantization_cost) if report.quantization_cost else []),
    ]
    if report.failures:
        lines += ["| case | gate | value | allowed | noise |", "|---|---|---|---|---|"]
        lines += [
            f"| {_cell(gate.subject)} | {_cell(gate.gate)} | {number_text(gate.value)} | {number_text(gate.limit)} "
            f"| {number_text(gate.noise)} |"
            for gate in shown_failures(report)
        ]
        lines += ["", f"The worst gate of each; all {len(report.failures)} are in {REPORT_NAME}."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of others inside of Markdown: no HTML, no markup, no further column, one line."""
    return re.sub(r"([\\`\[\]<>|&])", r"\\\1", plain_line(text, 500))


def _code(text: str) -> str:
    """Text of others between backticks."""
    return plain_line(text, 500).replace("`", "'")


def divergence_lines(report: Report) -> list[str]:
    """Where it first goes wrong, as a sentence."""
    if report.divergence is None or report.passed:
        return []
    if report.divergence.first is None:
        case = _code(report.divergence.case)
        return [f"No value of `{case}` goes wrong in a prompt alone: look at batching, chunking, slots.", ""]
    stage, error = report.divergence.first
    what = "not finite" if error.num_nonfinite else f"error {error.error:.3g}, allowed {error.limit:.3g}"
    place = f"{stage}, `{_code(error.node)}` ({_cell(error.op_type)})"
    return [f"First divergence: {place}: {what} (case `{_code(report.divergence.case)}`).", ""]


def _cost_lines(cost: QuantizationCost) -> list[str]:
    heading = "What quantizing cost, beside the unquantized checkpoint:"
    return [heading, "", *(f"- {line}" for line in cost.sentences()), ""]
