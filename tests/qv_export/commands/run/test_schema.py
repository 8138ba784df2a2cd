"""`run` with a form (schema, expression, choices, grammar): the answer has it, or it is refused before any work."""

import json
import re
from pathlib import Path

import pytest

import qv_export
from export.exporter import export_checkpoint
from qv_export.cli import run_command_line

ROOT = Path(__file__).parents[4]
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("forms") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return directory


def run(capsys, bundle, *options):
    code = run_command_line(["run", str(bundle), "--prompt", "How many?", "--json", *map(str, options)])
    return code, capsys.readouterr()


def test_an_answer_matches_an_expression_is_one_of_choices_or_follows_a_grammar(bundle, tmp_path, capsys):
    grammar = tmp_path / "grammar"
    grammar.write_text('root ::= ("yes" | "no") "!"')
    for options, expected in (
        (["--regex", "[0-9]{3}-[a-c]"], "[0-9]{3}-[a-c]"),
        (["--choice", "a house", "--choice", "ein Haus"], "a house|ein Haus"),
        (["--grammar", grammar], "(yes|no)!"),
    ):
        code, said = run(capsys, bundle, *options)
        assert code == 0, said.err
        assert re.fullmatch(expected, json.loads(said.out)["text"])


def test_a_form_that_cannot_be_followed_and_two_forms_are_refused_by_name(bundle, tmp_path, capsys):
    grammar = tmp_path / "grammar"
    grammar.write_text("start: x")
    for options, name in (
        (["--regex", "("], "regular expression"),
        (["--choice", ""], "choices"),
        (["--grammar", grammar], "grammar"),
        (["--regex", "a", "--choice", "a"], "--regex, --choice"),
    ):
        code, said = run(capsys, bundle, *options)
        assert code == 2
        assert name in said.out + said.err


def test_the_api_takes_the_same_forms(bundle):
    model = qv_export.load(bundle, max_context=256)
    assert re.fullmatch("[a-c]{4}", model.generate("Which?", regex="[a-c]{4}").text)
    assert "".join(model.stream("Which?", choice=["north", "south"])) in {"north", "south"}
    assert set(json.loads(model.generate("How many?", json_schema=SCHEMA).text)) == {"count"}
    with pytest.raises(qv_export.UserError, match="one form"):
        model.generate("Which?", regex="a", choice=["a"])
