import json

import pytest

from qv_export.cli import ExitCode, run_command_line
from tests.support.bundles import shared_bundle


@pytest.fixture
def bundle(tmp_path_factory):
    return shared_bundle(tmp_path_factory, {"dtype": "float32"})


def test_deploying_without_a_verdict_is_refused_and_allowed_by_name(bundle, tmp_path, capsys):
    arguments = ["deploy", "triton", str(bundle), "-o", str(tmp_path / "repository")]
    assert run_command_line(arguments) == ExitCode.USER_ERROR
    assert "was not validated" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    options = ["--allow-unvalidated", "--slots", "3", "--max-context", "256", "--allow-host", "Example.ORG"]
    assert run_command_line([*arguments, *options, "--json"]) == ExitCode.DONE
    said = json.loads(capsys.readouterr().out)
    assert said["is_validated"] is False
    settings = said["settings"]
    assert (settings["num_slots"], settings["capacity"], settings["allowed_hosts"]) == (
        3,
        256,
        ["example.org"],
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-context", "10000000"], "more than the model's"),
        (["--slots", "0"], "--slots"),
    ],
)
def test_what_the_model_cannot_serve_is_the_users_error(bundle, tmp_path, capsys, options, says):
    arguments = ["deploy", "triton", str(bundle), "-o", str(tmp_path / "repository"), "--allow-unvalidated"]
    assert run_command_line([*arguments, *options]) == ExitCode.USER_ERROR
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bundle_is_the_users_error(tmp_path, capsys):
    assert (
        run_command_line(["deploy", "triton", str(tmp_path), "-o", str(tmp_path / "x")])
        == ExitCode.USER_ERROR
    )
    assert "is not a bundle" in capsys.readouterr().err
