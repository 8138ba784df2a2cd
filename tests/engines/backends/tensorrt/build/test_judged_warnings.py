import pytest

from engines.backends.facts import WarningFacts
from engines.backends.tensorrt.build.judged_warnings import judged


def test_a_warning_of_every_sound_build_is_expected_and_any_other_is_not():
    int64, memory = (
        WarningFacts("Make sure input token_ids has Int64 binding.", 4),
        WarningFacts("Insufficient workspace", 1),
    )
    assert [warning.is_expected for warning in judged([int64, memory])] == [True, False]
    assert [(w.message, w.count) for w in judged([int64, memory])] == [
        (int64.message, 4),
        (memory.message, 1),
    ]


@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_a_sound_build_shows_no_warning(built, dtype, graph):
    assert [w for w in built(dtype, graph).facts.warnings if not w.is_expected] == []
