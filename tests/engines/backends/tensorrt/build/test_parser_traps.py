"""TensorRT-RTX's parser does today what the lint says of it. A failure here means that NVIDIA changed something."""

import pytest

from tests.support.parser_traps import SOUND, TRAPS
from tests.support.rtx_models import ask_rtx, request

pytestmark = pytest.mark.tensorrt


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All models in one process: it costs far more to start than to ask."""
    directory = tmp_path_factory.mktemp("traps")
    models = {**TRAPS, **SOUND}
    requests = [request(directory / f"{i}.onnx", trap.model()) for i, trap in enumerate(models.values())]
    return dict(zip(models, ask_rtx(requests), strict=True))


@pytest.mark.parametrize("name", TRAPS)
def test_rtx_still_sets_this_trap(answers, name):
    trap, answer = TRAPS[name], answers[name]
    if trap.ends == "wrong":
        assert answer["built"], answer["errors"]
        assert trap.shows
        assert trap.shows(answer)
    else:
        assert answer["parsed"] == (trap.ends == "unbuildable")
        assert not answer["built"]
        assert trap.says.lower() in " ".join(answer["errors"]).lower()


@pytest.mark.parametrize("name", SOUND)
def test_rtx_builds_what_the_lint_lets_pass(answers, name):
    assert answers[name]["built"], answers[name]["errors"]
    shows = SOUND[name].shows
    assert shows
    assert shows(answers[name])
