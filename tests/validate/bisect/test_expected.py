import numpy as np
import pytest

from export.errors import UserError
from validate.bisect.expected import SKETCH_SIZE, Question, RecordedWitness, sketch, sketches_path
from validate.records.metrics import compare_tensors
from validate.records.records import read_record


def test_a_sketch_keeps_relative_errors_to_a_tenth():
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(200, 1536))
    actual = expected + 1e-7 * generator.normal(size=expected.shape)
    true = compare_tensors(actual, expected).relative_l2
    estimate = compare_tensors(sketch(actual), sketch(expected)).relative_l2
    assert sketch(actual).shape == (200, SKETCH_SIZE)
    assert estimate == pytest.approx(true, rel=0.1)


def test_a_sketch_is_the_same_on_every_machine():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert sketch(rows)[:, :6].tolist() == EXPECTED
    assert np.isnan(sketch(np.array([[1.0, np.nan]]))).all()


EXPECTED = [[-0.125, -0.125, 0.375, 0.375, -0.375, 0.375], [0.25, 0.25, 1.5, 1.5, -0.75, 0.75]]


def test_a_damaged_file_is_named(exported, tmp_path):
    sketches_path(tmp_path, "text").write_bytes(b"PK")
    case = exported.plan.cases[0]
    expected = read_record(exported.records, case.name).prompts[0]
    with pytest.raises(UserError, match=r"text\.taps\.npz"):
        RecordedWitness(tmp_path, "text").ask(0, case.prompts[0], expected, [Question("vision", ())])
