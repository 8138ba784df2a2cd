import pytest

from export.graphs.lint import lint
from tests.support.parser_traps import SOUND, TRAPS


@pytest.mark.parametrize("trap", SOUND.values(), ids=SOUND)
def test_a_sound_graph_has_no_findings(trap):
    assert lint(trap.model()) == []


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_each_trap_is_found(trap):
    findings = lint(trap.model())
    assert findings
    assert trap.finding in findings[0]
    assert len(findings) == trap.num_findings
