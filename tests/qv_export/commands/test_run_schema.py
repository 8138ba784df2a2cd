"""`run --json-schema`: the answer is of the form that was asked for, or the schema is refused before any work."""

import json
from pathlib import Path

import pytest

from export.exporter import export_checkpoint
from qv_export.cli import run_command_line

ROOT = Path(__file__).parents[3]
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_answer_meets_the_schema_or_the_schema_is_refused(tmp_path, capsys, is_sound):
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", tmp_path / "bundle")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA if is_sound else {"type": "nope"}))
    asked = ["run", str(tmp_path / "bundle"), "--prompt", "How many?", "--json-schema", str(schema), "--json"]
    code = run_command_line(asked)
    captured = capsys.readouterr()
    if is_sound:
        assert code == 0
        found = json.loads(json.loads(captured.out)["text"])
        assert set(found) == {"count"}
        assert 0 <= found["count"] <= 99
    else:
        assert code == 2
        assert "nope" in captured.out + captured.err
