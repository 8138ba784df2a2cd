import numpy as np
import pytest

from export.errors import UserError
from validate.bisect.expected import PROJECTION_SIZE, Question, RecordedValues, projection, projections_path
from validate.records.metrics import compare_tensors
from validate.records.records import read_case_record


def test_a_projection_keeps_relative_errors_to_a_tenth():
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(200, 1536))
    actual = expected + 1e-7 * generator.normal(size=expected.shape)
    true = compare_tensors(actual, expected).relative_l2
    estimate = compare_tensors(projection(actual), projection(expected)).relative_l2
    assert projection(actual).shape == (200, PROJECTION_SIZE)
    assert estimate == pytest.approx(true, rel=0.1)


def test_a_projection_is_the_same_on_every_machine():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert projection(rows)[:, :6].tolist() == EXPECTED
    assert np.isnan(projection(np.array([[1.0, np.nan]]))).all()


EXPECTED = [[-0.125, -0.125, 0.375, 0.375, -0.375, 0.375], [0.25, 0.25, 1.5, 1.5, -0.75, 0.75]]


def test_a_damaged_file_is_named(exported, tmp_path):
    projections_path(tmp_path, "text").write_bytes(b"PK")
    case = exported.plan.cases[0]
    expected = read_case_record(exported.records, case.name).prompts[0]
    with pytest.raises(UserError, match=r"text\.taps\.npz"):
        RecordedValues(tmp_path, "text").ask(0, case.prompts[0], expected, [Question("vision", ())])
