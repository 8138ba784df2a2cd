"""What users get wrong most often: with `--json`, each mistake says apart what to do instead."""

import json
from pathlib import Path

import pytest

from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle

TINY = Path(__file__).resolve().parents[2] / "models" / "qwen2-vl-tiny"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mistakes")
    (root / "empty").mkdir()
    (root / "file.txt").write_text("no picture, no model")
    names = {"EMPTY": "empty", "FILE": "file.txt", "NOWHERE": "nowhere", "NEW": "new"}
    bundle = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    return {name: str(root / path) for name, path in names.items()} | {
        "BUNDLE": str(bundle),
        "TINY": str(TINY),
    }


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("export NOWHERE -o NEW", "Give the checkpoint's directory."),
        ("export Qwen/Qwen2-VL-2B-Instruct -o NEW", "Download it first: hf download"),
        ("export EMPTY -o NEW", "Give a directory as downloaded from the hub"),
        ("export BUNDLE -o NEW", "ask it: qv-export run"),
        ("export TINY -o FILE", "Choose another output."),
        ("export TINY -o TINY", "Choose another output."),
        ("export TINY -o NEW --dtype float8", "qv-export export --help"),
        ("export TINY -o NEW --adapter EMPTY", "Give the directory that PEFT saved it in."),
        ("export TINY -o NEW --quantize nvfp4", "Choose another way"),
        ("export TINY -o NEW --pipeline-stages 99", "Give at most 5."),
        ("build EMPTY --target onnxruntime", "Make one: qv-export export"),
        ("build TINY --target onnxruntime", "Export that first: qv-export export"),
        ("build BUNDLE --target nonsense", "qv-export build --help"),
        ("build BUNDLE --target onnxruntime --sm 89", "Leave it out."),
        ("build BUNDLE --target onnxruntime --max-context 99999999", "Use at most --max-context"),
        ("run NOWHERE --prompt hi", "Make one: qv-export export"),
        ("run FILE --prompt hi", "Make one: qv-export export"),
        ("run BUNDLE", "qv-export run --help"),
        ("run BUNDLE --prompt hi --image FILE", "Expected one of AVIF"),
        ("run BUNDLE --prompt hi --image https://example.org/a.png", "Download it first."),
        ("run BUNDLE --prompt hi --engine abcd", "lists what it has, and `qv-export build` makes one."),
        ("run BUNDLE --prompt hi --target tensorrt-rtx", "Build one: qv-export build"),
        ("run BUNDLE --prompt hi --max-context 99999999", "Leave it out, or ask for less."),
        ("validate BUNDLE", "qv-export validate --help"),
        ("validate BUNDLE --report FILE", "Choose another output."),
        ("validate BUNDLE --report NEW --engine abcd", "lists what it has"),
        (
            "validate BUNDLE --report NEW --against EMPTY",
            "Record one with `qv-export validate BUNDLE --record",
        ),
        ("deploy triton BUNDLE -o NEW", "Run `qv-export validate"),
        ("deploy triton BUNDLE -o NEW --engine abcd", "lists what it has"),
        ("batch BUNDLE -o NEW", "qv-export batch --help"),
        ("bench BUNDLE --engine abcd", "lists what it has"),
        ("inspect FILE", "Give a bundle's directory or an .onnx file."),
    ],
)
def test_a_mistake_tells_the_way_out_apart(line, remedy, places, capsys):
    arguments = [places.get(word, word) for word in line.split()]
    assert run_command_line([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert remedy in told["remedy"]
    assert told["remedy"] not in told["message"]
    assert ".." not in told["message"].replace("...", "")
    assert told["remedy"].removeprefix("qv-export ") in err
