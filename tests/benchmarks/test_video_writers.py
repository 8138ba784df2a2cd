import pytest

from benchmarks.video_inputs import DOCS, ROOT
from benchmarks.video_writers import CONTAINERS, KINDS, MARKS, judged, missing
from export.processor.processor import Processor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "both writers are here"),
]


@pytest.fixture(scope="module")
def processor():
    return Processor.from_directory(ROOT / "models" / "qwen2-vl-tiny")


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_films_of_other_writers_are_seen_as_the_page_says(processor, kind):
    page = DOCS.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    [line] = [line for line in page.splitlines() if line.startswith(f"| {kind.name} |")]
    told = dict(zip(CONTAINERS, line.strip("| ").split(" | ")[1:], strict=True))
    found = {container: judged(processor, kind, container) for container in CONTAINERS}
    # How much of a damaged film is left depends on the encoder's version.
    if kind.least_share < 1:
        assert not any(cell.startswith("**") for cell in found.values()), found
    else:
        assert found == told
    assert "seen" in found.values()
