import numpy as np
import pytest

from validate.records.metrics import compare_logits, compare_tensors


def test_the_worst_token_is_found_behind_a_good_mean():
    expected = np.ones((100, 4), np.float32)
    actual = expected.copy()
    actual[37] = [1, 1, -1, -1]
    metrics = compare_tensors(actual, expected)
    assert metrics.worst_token == 37
    assert metrics.worst_token_cosine == pytest.approx(0)
    assert metrics.worst_token_error == pytest.approx(np.sqrt(2))
    assert metrics.max_abs == 2
    assert metrics.mean_abs == pytest.approx(4 / 400)
    assert metrics.relative_l2 == pytest.approx(np.sqrt(8 / 400))


def test_equal_tensors_have_no_error():
    x = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    metrics = compare_tensors(x, x)
    assert (metrics.max_abs, metrics.worst_token_error, metrics.num_tokens) == (0, 0, 15)
    assert metrics.worst_token_cosine == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_counted_and_infinitely_wrong(bad):
    expected = np.ones((4, 3), np.float32)
    actual = expected.copy()
    actual[2, 1] = bad
    metrics = compare_logits(actual, expected)
    assert metrics.num_nonfinite == 1
    assert metrics.worst_token == 2
    assert metrics.worst_token_error == metrics.worst_kl == metrics.worst_lost_margin == np.inf
    assert metrics.top1_agreement == 0


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"shape \[2, 3\], expected \[2, 4\]"):
        compare_tensors(np.zeros((2, 3)), np.zeros((2, 4)))


def test_no_tokens_are_no_error():
    assert compare_tensors(np.zeros((0, 8)), np.zeros((0, 8))).worst_token_error == 0
    assert compare_logits(np.zeros((0, 8)), np.zeros((0, 8))).top1_agreement == 1


def test_a_token_whose_expected_vector_is_zero_is_measured_by_the_mean_token():
    expected = np.array([[3.0, 4.0], [0.0, 0.0]])
    metrics = compare_tensors(expected + np.array([[0, 0], [0, 2.5e-6]]), expected)
    assert metrics.worst_token == 1
    assert metrics.worst_token_error == pytest.approx(1.0)


def test_predictions_are_compared_as_a_reader_would():
    expected = np.array([[5.0, 4.0, 0, 0, 0, 0, 0], [1.0, 0.9, 0, 0, 0, 0, -3]])
    actual = np.array([[5.0, 4.0, 0, 0, 0, 0, 0], [0.9, 1.0, 0, 0, 0, 0, -3]])
    metrics = compare_logits(actual, expected)
    assert metrics.top1_agreement == 0.5
    assert metrics.first_differing_token == 1
    assert metrics.worst_lost_margin == pytest.approx(0.1)


def test_kl_divergence_is_the_textbook_one():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
    metrics = compare_logits(np.log(q)[None] + 3, np.log(p)[None] - 2)
    assert metrics.worst_kl == pytest.approx((p * np.log(p / q)).sum())
