"""Every command, and the Python API, refuses a bundle that holds what it should not, and names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import qv_export
from export.errors import UserError
from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle

USER_ERROR = 2
COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "run": lambda bundle, _: ["run", bundle, "--prompt", "x"],
    "build": lambda bundle, _: ["build", bundle, "--target", "onnxruntime"],
    "validate": lambda bundle, out: ["validate", bundle, "--report", out / "report"],
    "deploy": lambda bundle, out: ["deploy", "triton", bundle, "-o", out / "models", "--allow-unvalidated"],
    "serve": lambda bundle, _: ["serve", bundle, "--port", 0],
    "chat": lambda bundle, _: ["chat", bundle],
    "batch": lambda bundle, out: ["batch", bundle, "--requests", out / "asked.jsonl", "-o", out / "answers"],
    "bench": lambda bundle, _: ["bench", bundle],
    "inspect": lambda bundle, _: ["inspect", bundle],
}


def unlisted(bundle: Path) -> str:
    (bundle / "processor_config.json").write_text("{}", encoding="utf-8")
    return "processor_config.json"


def unlisted_in_a_folder(bundle: Path) -> str:
    (bundle / "additional_chat_templates").mkdir()
    (bundle / "additional_chat_templates" / "default.jinja").write_text("x", encoding="utf-8")
    return "additional_chat_templates"


def linked_out(bundle: Path) -> str:
    (bundle / "tokenizer_config.json").unlink()
    (bundle / "tokenizer_config.json").symlink_to("/proc/self/environ")
    return "tokenizer_config.json"


def unlisted_link(bundle: Path) -> str:
    (bundle / "chat_template.jinja").symlink_to("/etc/hostname")
    return "chat_template.jinja"


def a_pipe(bundle: Path) -> str:
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    return "tokenizer.json"


def foreign_bytes(bundle: Path) -> str:
    content = json.loads((bundle / "preprocessor_config.json").read_text(encoding="utf-8"))
    (bundle / "preprocessor_config.json").write_text(json.dumps(content, indent=7), encoding="utf-8")
    return "preprocessor_config.json"


def foreign_graph(bundle: Path) -> str:
    with (bundle / "vision.onnx").open("ab") as file:
        file.write(b"\0")
    return "vision.onnx"


def weights_of_another_length(bundle: Path) -> str:
    [weights] = bundle.glob("*.safetensors")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    return weights.name


CHANGES = (
    unlisted, unlisted_in_a_folder, linked_out, unlisted_link, a_pipe, foreign_bytes, foreign_graph,
    weights_of_another_length,
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_bundle(tmp_path_factory, {"dtype": "float32"})


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def asked(tmp_path: Path) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
    (tmp_path / "asked.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bundle_with_a_file_that_should_not_be_there_is_refused_by_every_command(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    change: Callable[[Path], str],
) -> None:
    name = change(bundle)
    assert run_command_line(list(map(str, COMMANDS[command](bundle, tmp_path)))) == USER_ERROR
    said = capsys.readouterr().err
    assert name in said
    assert "Traceback" not in said


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_is_refused_by_the_python_api(bundle: Path, change: Callable[[Path], str]) -> None:
    name = change(bundle)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        qv_export.load(bundle)


@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("command", ["validate", "deploy", "inspect --verify"])
def test_one_flipped_bit_anywhere_in_the_weights_is_refused_and_the_file_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: float
) -> None:
    [weights] = bundle.glob("*.safetensors")
    with weights.open("r+b") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")  # behind the header
        at = begin + int(place * (weights.stat().st_size - 1 - begin))
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    arguments = (
        ["inspect", bundle, "--verify"]
        if command == "inspect --verify"
        else COMMANDS[command](bundle, tmp_path)
    )
    assert run_command_line(list(map(str, arguments))) == USER_ERROR
    assert weights.name in capsys.readouterr().err
