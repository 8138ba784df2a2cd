import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.backends import backend_of
from engines.open import find_engine
from engines.sizing.limits import Limits
from engines.store import cache as cache_module
from engines.store.cache import (
    EngineRequest,
    cached_engine,
    key_inputs,
    reason_to_build,
    writing_engine,
)
from export.bundle import Bundle, open_bundle
from export.errors import UserError
from export.records.engine_record import RECORD_NAME, EngineRecord, engine_records
from export.records.manifest import FileRecord, content_key, sha256_of
from tests.export.bundle_samples import make_weights, write_bundle

ROOT = Path(__file__).resolve().parents[3]
REQUEST = EngineRequest(backend_of("tensorrt-rtx"), Limits(), (80, 89))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", make_weights(tmp_path / "model.safetensors"))


def write_engine(
    bundle: Bundle, request: EngineRequest = REQUEST, content: bytes = b"an engine"
) -> EngineRecord:
    inputs = key_inputs(bundle.manifest.key, request)
    with writing_engine(bundle.directory, content_key(inputs)) as scratch:
        assert scratch is not None
        return fill(scratch, inputs, request, content)


def fill(
    scratch: Path, inputs: dict[str, str], request: EngineRequest = REQUEST, content: bytes = b"an engine"
) -> EngineRecord:
    (scratch / "vision.engine").write_bytes(content)
    record = EngineRecord(
        key=content_key(inputs),
        inputs=inputs,
        target=request.backend.name,
        sms=request.sms,
        limits={"max_batch": request.limits.max_batch, "max_context": request.limits.max_context},
        plugins=(),
        driver=None,
        created="2026-01-01T00:00:00+00:00",
        seconds=1.5,
        files=(FileRecord.from_file(scratch / "vision.engine"),),
        facts={"vision": {"layers": []}},
    )
    (scratch / RECORD_NAME).write_text(record.to_json())
    return record


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_written_engine_is_found_by_its_key_alone(bundle: Bundle) -> None:
    record = write_engine(bundle)
    assert cached_engine(bundle.directory, record.key) == record
    assert cached_engine(bundle.directory, "0" * 16) is None
    assert engine_records(bundle.directory) == {record.key: record}
    assert bundle.engines() == [record]
    assert reason_to_build(bundle.directory, record.inputs) is None
    assert names(bundle.directory / "engines") == [record.key]


def changed_options(**changes: Any) -> EngineRequest:
    return replace(REQUEST, options=changes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(REQUEST, limits=Limits(max_batch=4)), "limit max_batch: built 8, wanted 4"),
        (replace(REQUEST, limits=Limits(max_logits_tokens=1)), "limit max_logits_tokens: built 32, wanted 1"),
        (replace(REQUEST, sms=(80,)), "sm: built 80,89, wanted 80"),
        (changed_options(weight_streaming=True), "option weight_streaming: built False, wanted True"),
        (changed_options(optimization_level=1), "option optimization_level: built None, wanted 1"),
    ],
)
def test_any_other_request_is_another_engine_and_the_difference_is_named(
    bundle: Bundle, other: EngineRequest, said: str
) -> None:
    write_engine(bundle)
    inputs = key_inputs(bundle.manifest.key, other)
    assert cached_engine(bundle.directory, content_key(inputs)) is None
    assert reason_to_build(bundle.directory, inputs) == said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_versions", {"qv-export": "0.1.0", "tensorrt-rtx-cu13-libs": "9.9"}),
        ("sources_digest", "another"),
    ],
)
def test_another_tool_or_other_code_of_ours_is_another_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    key = content_key(key_inputs(bundle.manifest.key, REQUEST))
    monkeypatch.setattr(cache_module, name, lambda target: value)
    assert content_key(key_inputs(bundle.manifest.key, REQUEST)) != key


def test_another_bundle_is_another_engine_and_a_timing_cache_is_not() -> None:
    assert key_inputs("a", REQUEST) != key_inputs("b", REQUEST)
    tensorrt = EngineRequest(backend_of("tensorrt"), Limits(), (90,))
    timed = replace(tensorrt, options={"timing_cache": Path("times")})
    assert key_inputs("a", tensorrt) == key_inputs("a", timed)


def truncate(directory: Path) -> None:
    (directory / "vision.engine").write_bytes(b"an eng")


def remove(directory: Path) -> None:
    (directory / "vision.engine").unlink()


def break_record(directory: Path) -> None:
    (directory / RECORD_NAME).write_text('{"format": "qv-export engine", "format_version"')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "vision.engine has 6 bytes, recorded were 9"),
        (remove, "vision.engine is missing"),
        (break_record, "cannot be read as JSON"),
    ],
)
def test_a_damaged_engine_is_not_used_and_is_replaced(
    bundle: Bundle, damage: Callable[[Path], None], said: str
) -> None:
    record = write_engine(bundle)
    damage(bundle.directory / "engines" / record.key)
    assert cached_engine(bundle.directory, record.key) is None
    assert said in str(reason_to_build(bundle.directory, record.inputs))
    assert cached_engine(bundle.directory, write_engine(bundle).key) == record


def rewrite_record(directory: Path, **changes: Any) -> None:
    path = directory / RECORD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": {}}, "its key is not the hash of its inputs"),
        ({"target": "tensorrt"}, "target is tensorrt, its key is of tensorrt-rtx"),
        ({"sms": [90]}, "sm is 90, its key is of 80,89"),
        ({"limits": {"max_batch": 64}}, "limit max_batch is 64, its key is of 8"),
        ({"limits": {"max_colour": 1}}, "limit max_colour is 1, its key is of none"),
    ],
)
def test_a_record_that_says_something_else_than_its_key_is_not_believed(
    bundle: Bundle, changes: dict[str, Any], said: str
) -> None:
    record = write_engine(bundle)
    rewrite_record(bundle.directory / "engines" / record.key, **changes)
    assert cached_engine(bundle.directory, record.key) is None
    assert said in str(reason_to_build(bundle.directory, record.inputs))
    with pytest.raises(UserError, match=said):
        find_engine(bundle, record.key)
    assert cached_engine(bundle.directory, write_engine(bundle).key) == record


def test_a_record_in_another_engines_place_is_not_believed(bundle: Bundle) -> None:
    record = write_engine(bundle)
    other = content_key({**record.inputs, "bundle": "another"})
    (bundle.directory / "engines" / record.key).rename(bundle.directory / "engines" / other)
    assert cached_engine(bundle.directory, other) is None
    with pytest.raises(UserError, match="another key inside"):
        find_engine(bundle, other)


@pytest.mark.parametrize("name", ["vision.engine", RECORD_NAME, ""])
def test_a_link_in_an_engines_place_is_not_used(bundle: Bundle, tmp_path: Path, name: str) -> None:
    record = write_engine(bundle)
    path = bundle.directory / "engines" / record.key / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cached_engine(bundle.directory, record.key) is None
    with pytest.raises(UserError, match="link"):
        find_engine(bundle, record.key)


def test_an_engine_is_built_anew_where_that_is_asked(bundle: Bundle) -> None:
    record = write_engine(bundle)
    with writing_engine(bundle.directory, record.key) as scratch:
        assert scratch is None
    with writing_engine(bundle.directory, record.key, rebuild=True) as scratch:
        assert scratch is not None
        rebuilt = fill(scratch, dict(record.inputs), content=b"a new engine")
    assert cached_engine(bundle.directory, record.key) == rebuilt != record


def test_a_changed_byte_is_found_by_reading(bundle: Bundle) -> None:
    record = write_engine(bundle)
    directory = bundle.directory / "engines" / record.key
    (directory / "vision.engine").write_bytes(b"an enginE")
    assert list(record.changed_files(directory, read=False)) == []
    assert list(record.changed_files(directory, read=True)) == ["vision.engine changed since it was built"]


def test_bytes_are_read_once_a_command_and_again_once_they_changed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write_engine(bundle)
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("export.records.engine_record.sha256_of", counting)
    digests = bundle.engine_digests(record)
    assert bundle.changed_engine_files(record) == []
    assert bundle.engine_digests(record) == digests
    assert sorted(read) == sorted(file.name for file in record.files)
    path = bundle.directory / "engines" / record.key / "vision.engine"
    path.write_bytes(b"an enginE")
    for _ in range(2):
        assert bundle.changed_engine_files(record) == ["vision.engine changed since it was built"]
    path.unlink()
    assert bundle.changed_engine_files(record) == ["vision.engine is missing"]


def test_a_failed_build_leaves_nothing(bundle: Bundle) -> None:
    with pytest.raises(RuntimeError), writing_engine(bundle.directory, "0" * 16) as scratch:
        assert scratch is not None
        (scratch / "vision.engine").write_bytes(b"half")
        raise RuntimeError
    assert not (bundle.directory / "engines").exists()


def test_a_bundle_that_was_exported_anew_meanwhile_is_the_users_to_build_again(
    bundle: Bundle, tmp_path: Path
) -> None:
    with (
        pytest.raises(UserError, match="exported anew while its engine was built"),
        writing_engine(bundle.directory, "0" * 16) as scratch,
    ):
        assert scratch is not None
        write_bundle(bundle.directory, tmp_path / "model.safetensors", graph=b"second")
        (scratch / "vision.engine").write_bytes(b"late")
    assert not (bundle.directory / "engines" / ("0" * 16)).exists()


def test_a_place_that_cannot_be_written_is_named(bundle: Bundle) -> None:
    (bundle.directory / "engines").write_text("in the way")
    with (
        pytest.raises(UserError, match=r"engines cannot be written \(File exists\)"),
        writing_engine(bundle.directory, "0" * 16),
    ):
        pytest.fail("the body must not run")


def test_engines_that_are_a_link_are_refused_and_what_it_leads_to_stays(
    bundle: Bundle, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for name in (".notes.writing-2024", ".doc.writing-x.old"):
        (home / name).mkdir(parents=True)
        (home / name / "diary.txt").write_text("mine")
    (bundle.directory / "engines").symlink_to(home)
    with pytest.raises(UserError, match="engines is a link"), writing_engine(bundle.directory, "0" * 16):
        pytest.fail("the body must not run")
    assert names(home) == [".doc.writing-x.old", ".notes.writing-2024"]
    assert (home / ".notes.writing-2024" / "diary.txt").read_text() == "mine"
    with pytest.raises(UserError, match="engines: is a symbolic link"):
        open_bundle(bundle.directory)


def test_a_hidden_directory_that_no_build_made_is_left_alone(bundle: Bundle) -> None:
    notes = bundle.directory / "engines" / ".notes.writing-2024" / "diary.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    write_engine(bundle)
    assert notes.read_text() == "mine"


# Two processes

WRITER = """
import sys
from pathlib import Path
from engines.store.cache import key_inputs, writing_engine
from export.bundle import open_bundle
from export.records.manifest import content_key
from tests.engines.store.test_cache import REQUEST

bundle = open_bundle(Path(sys.argv[1]))
key = content_key(key_inputs(bundle.manifest.key, REQUEST))
print("started", flush=True)
with writing_engine(bundle.directory, key) as scratch:
    print("waited" if scratch is None else "writing", flush=True)
    sys.stdin.readline()
"""


def start(bundle: Bundle) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(bundle.directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_build_waits_and_uses_what_the_first_one_built(bundle: Bundle) -> None:
    inputs = key_inputs(bundle.manifest.key, REQUEST)
    with writing_engine(bundle.directory, content_key(inputs)) as scratch:
        assert scratch is not None
        second = start(bundle)
        assert line(second) == "started"
        record = fill(scratch, inputs)
    assert line(second) == "waited"
    second.communicate("\n", timeout=60)
    assert cached_engine(bundle.directory, record.key) == record
    assert names(bundle.directory / "engines") == [record.key]


def test_a_killed_build_frees_its_lock_and_the_next_one_cleans_up(bundle: Bundle) -> None:
    first = start(bundle)
    assert [line(first), line(first)] == ["started", "writing"]
    first.kill()
    first.wait()
    left = names(bundle.directory / "engines")
    assert [name.rpartition(".")[2][:4] for name in left] == ["lock", "writ"]
    other = write_engine(bundle, replace(REQUEST, limits=Limits(max_batch=1)))
    assert names(bundle.directory / "engines") == [left[0], other.key]
    record = write_engine(bundle)
    assert names(bundle.directory / "engines") == sorted([other.key, record.key])
