import pytest

from engines.sizing.limits import Limits
from export.errors import UserError


def test_a_short_context_shortens_the_default_prompt():
    assert Limits().prompt_tokens == 2048
    assert Limits(max_context=512).prompt_tokens == 512
    assert Limits(max_context=512, max_prompt_tokens=128).prompt_tokens == 128


def test_all_problems_come_at_once():
    with pytest.raises(UserError) as caught:
        Limits(max_patches=0, max_batch=-1, max_context=2.5)  # type: ignore[arg-type]
    for words in ("max_patches must be", "max_batch must be", "found 2.5"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_patches": 1023}, "multiple of 4, found 1023"),
        ({"max_patches": 64, "max_segments": 17}, "do not fit into max_patches 64"),
        ({"max_context": 512, "max_prompt_tokens": 513}, "must be at most max_context 512"),
        ({"max_batch": True}, "max_batch must be a whole number"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(values, problem):
    with pytest.raises(UserError, match=problem):
        Limits(**values)
