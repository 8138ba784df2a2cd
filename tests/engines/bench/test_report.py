"""A report says the same after it was written and read, and what is no report is refused."""

import json

import pytest

from engines.backends.ceilings import Ceiling
from engines.bench.report import BenchReport, BenchRow, BenchSubject, LeftOut, read_report
from export.errors import UserError

REPORT = BenchReport(
    1,
    "2026-01-01T00:00:00+00:00",
    "0.1.0",
    BenchSubject("a CPU", 2, ("a GPU, driver 580.1",), "onnxruntime", "1.32.0", "e", "b", 8, 2048, 1),
    ("decode", "memory"),
    0.25,
    1.0,
    (Ceiling("copy", 1e10, "NumPy"),),
    (BenchRow("decode", "batch 1, context 128", 1.5, 1.0, 2.0, "ms", 3, rate=666.0, rate_unit="tokens/s"),),
    (LeftOut("decode", "batch 8, context 2048", "too slow"),),
)


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(REPORT.to_json())
    assert read_report(path) == REPORT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "expected version 1, found 2"),
        ({"rows": [{"section": "decode"}]}, "missing keys"),
        ({"rows": [{"section": 7}]}, "section must be a string"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_another_file_is_refused_by_what_is_wrong_with_it(tmp_path, change, words):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(REPORT.to_json()), **change}))
    with pytest.raises(UserError, match=words):
        read_report(path)
