import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from export import bundle as bundle_module
from export.bundle import (
    fingerprint_safetensors,
    open_bundle,
    place_weights,
    require_place,
    writing_bundle,
)
from export.errors import UserError
from export.records.manifest import FileRecord
from tests.export.bundle_samples import fill, graph_bytes, make_weights, write_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "checkpoint" / "model.safetensors")


def siblings(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


# Writing and reading


def test_a_written_bundle_opens_with_what_was_recorded(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "out" / "bundle"
    with writing_bundle(output) as directory:
        assert not output.exists()
        manifest = fill(directory, place_weights([weights], directory, "copy"))
    bundle = open_bundle(output)
    assert bundle.manifest == manifest
    assert bundle.graph("vision").read_bytes() == graph_bytes(b"vision graph")
    assert bundle.graph("decoder").read_bytes() == graph_bytes(b"decoder graph")
    assert siblings(output) == ["bundle"]


def test_a_bundle_is_readable_by_others_as_the_umask_says(tmp_path: Path, weights: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights)
    umask = os.umask(0)
    os.umask(umask)
    assert bundle.directory.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights)
    bundle = write_bundle(output, weights, graph=b"second")
    assert bundle.graph("vision").read_bytes() == graph_bytes(b"second")
    assert siblings(output) == ["bundle", "checkpoint"]


@pytest.mark.parametrize(("key", "is_kept"), [("same", True), ("other", False)])
def test_engines_stay_with_a_bundle_of_the_same_key(
    tmp_path: Path, weights: Path, key: str, is_kept: bool
) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights, key="same")
    engine = output / "engines" / "0123" / "vision.engine"
    unfinished = output / "engines" / ".4567.writing-89ab" / "vision.engine"
    for path in (engine, unfinished):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"engine")
    write_bundle(output, weights, key=key)
    assert engine.exists() == is_kept
    assert not unfinished.exists()
    assert open_bundle(output).manifest.key == key
    assert siblings(output) == ["bundle", "checkpoint"]


def test_an_output_behind_a_symbolic_link_is_replaced_where_it_is(tmp_path: Path, weights: Path) -> None:
    write_bundle(tmp_path / "v1", weights)
    link = tmp_path / "current"
    link.symlink_to("v1")
    write_bundle(link, weights, graph=b"second")
    assert link.is_symlink()
    assert open_bundle(tmp_path / "v1").graph("vision").read_bytes() == graph_bytes(b"second")


# What must not be replaced


@pytest.mark.parametrize("kind", ["file", "foreign directory", "below a file", "endless name", "loop"])
def test_an_output_that_is_no_bundle_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "taken"
    if kind == "file":
        output.write_text("precious")
    elif kind == "foreign directory":
        output.mkdir()
        (output / "manifest.json").write_text('{"format": "something else"}')
    elif kind == "below a file":
        output.write_text("precious")
        output = output / "bundle"
    elif kind == "endless name":
        output = tmp_path / ("x" * 300)
    else:
        output.symlink_to("taken")
    before = siblings(tmp_path / "x")
    with pytest.raises(UserError, match="another output"), writing_bundle(output):
        pytest.fail("the body must not run")
    assert siblings(tmp_path / "x") == before


def test_an_empty_directory_is_taken(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert write_bundle(tmp_path / "bundle", weights).manifest.dtype == "float32"


def test_a_mount_point_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match=r"mount point.*/proc/bundle"), writing_bundle(Path("/proc")):
        pytest.fail("the body must not run")


# Failures


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), UserError("bad shard")])
def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, weights: Path, error: BaseException
) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights)
    with pytest.raises(type(error)), writing_bundle(output) as directory:
        (directory / "vision.onnx").write_bytes(b"half")
        raise error
    assert open_bundle(output).graph("vision").read_bytes() == graph_bytes(b"vision graph")
    assert siblings(output) == ["bundle", "checkpoint"]


def test_a_failed_write_removes_the_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing_bundle(tmp_path / "new" / "deeper" / "bundle"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


KILLED_WRITER = """
import sys, time
from pathlib import Path
from export.bundle import writing_bundle
with writing_bundle(Path(sys.argv[1])) as directory:
    (directory / "vision.onnx").write_bytes(b"half")
    print(directory.name, flush=True)
    time.sleep(600)
"""


def start_writer(output: Path) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_killed_write_leaves_the_old_bundle_and_the_next_one_cleans_up(
    tmp_path: Path, weights: Path
) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights)
    process, scratch_name = start_writer(output)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert siblings(output) == [scratch_name, "bundle", "checkpoint"]
    assert open_bundle(output).graph("vision").read_bytes() == graph_bytes(b"vision graph")
    write_bundle(output, weights, graph=b"second")
    assert siblings(output) == ["bundle", "checkpoint"]


def test_a_living_write_is_not_cleaned_up_by_another(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "bundle"
    process, scratch_name = start_writer(output)
    try:
        write_bundle(output, weights)
        assert (tmp_path / scratch_name / "vision.onnx").read_bytes() == b"half"
    finally:
        process.kill()
        process.wait()


def test_a_bundle_set_aside_by_a_killed_two_step_replacement_comes_back(
    tmp_path: Path, weights: Path
) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights)
    output.rename(tmp_path / ".bundle.writing-00000000.old")
    with pytest.raises(RuntimeError), writing_bundle(output):
        raise RuntimeError
    assert open_bundle(output).graph("vision").read_bytes() == graph_bytes(b"vision graph")


def test_cleaning_up_follows_no_symbolic_link(tmp_path: Path, weights: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "photo").touch()
    (tmp_path / ".bundle.writing-00000000").symlink_to(precious)
    (tmp_path / ".bundle.writing-00000001.old").symlink_to(precious)
    with pytest.raises(RuntimeError), writing_bundle(tmp_path / "bundle"):
        raise RuntimeError
    assert (precious / "photo").exists()
    assert not (tmp_path / "bundle").exists()


def test_a_name_full_of_wildcards_cleans_up_only_its_own(tmp_path: Path, weights: Path) -> None:
    other = tmp_path / ".ab.writing-00000000"
    other.mkdir()
    write_bundle(tmp_path / "a*", weights)
    assert other.exists()


LIMITED_WRITER = """
import resource, sys
from pathlib import Path
from export.bundle import place_weights, writing_bundle
from export.errors import UserError
from tests.export.bundle_samples import fill, graph_bytes, make_weights, write_bundle
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with writing_bundle(Path(sys.argv[1])) as directory:
        place_weights([Path(sys.argv[2])], directory, "copy")
except UserError as error:
    print(error)
"""


def test_a_file_that_may_grow_no_further_is_the_users_error(tmp_path: Path, weights: Path) -> None:
    output = tmp_path / "bundle"
    message = subprocess.run(
        [sys.executable, "-c", LIMITED_WRITER, output, weights],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert message.startswith(f"No space left while writing {output} (File too large)")
    assert siblings(output) == ["checkpoint"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="No space left"), writing_bundle(tmp_path / "bundle"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_forbidden_place_is_the_users_error_and_named(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    # Root may write everywhere, so that the refusal is simulated.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"No permission at .*"), writing_bundle(tmp_path / "bundle"):
        pytest.fail("the body must not run")


def test_a_bug_in_the_body_is_not_blamed_on_the_user(tmp_path: Path) -> None:
    (tmp_path / "exists").touch()
    with pytest.raises(FileExistsError), writing_bundle(tmp_path / "bundle"):
        (tmp_path / "exists").open("x")


# Weights


def test_copied_weights_are_equal_and_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    monkeypatch.setattr(bundle_module, "CHUNK_BYTES", 1000)  # several chunks and a rest
    (tmp_path / "b").mkdir()
    [record] = place_weights([weights], tmp_path / "b", "copy")
    content = weights.read_bytes()
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == content
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.bytes == len(content)
    assert record.fingerprint == fingerprint_safetensors(weights)


def test_linked_weights_share_their_bytes_even_through_a_symbolic_link(tmp_path: Path, weights: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    link = snapshot / "model-00001-of-00001.safetensors"
    link.symlink_to(weights)
    (tmp_path / "b").mkdir()
    [record] = place_weights([link], tmp_path / "b", "link")
    placed = tmp_path / "b" / link.name
    assert not placed.is_symlink()
    assert placed.stat().st_ino == weights.stat().st_ino
    assert record.sha256 is None


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_a_refused_link_names_the_way_out(
    tmp_path: Path, weights: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="--weights copy"):
        place_weights([weights], tmp_path / "b", "link")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system at /dev/shm")
def test_a_link_across_file_systems_is_refused(tmp_path: Path, weights: Path) -> None:
    output = Path("/dev/shm") / f"qv-export-test-{os.getpid()}"
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the temporary directory is on /dev/shm too")
    with pytest.raises(UserError, match="--weights copy"):
        require_place([weights], output / "deep" / "bundle", "link")
    with pytest.raises(UserError, match="--weights copy"), writing_bundle(output) as directory:
        place_weights([weights], directory, "link")
    assert not output.exists()


def test_too_little_space_is_noticed_before_copying(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"Not enough disk space.*--weights link"):
        place_weights([weights], tmp_path / "b", "copy")
    with pytest.raises(UserError, match=r"[0-9.]+ kB needed, 1 B free"):
        require_place([weights], tmp_path / "b" / "not" / "yet", "copy")
    require_place([weights], tmp_path / "b" / "not" / "yet", "link")
    assert list((tmp_path / "b").iterdir()) == []


def test_two_weight_files_of_one_name_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(UserError, match="different names"):
        place_weights([weights, make_weights(tmp_path / "other" / weights.name)], tmp_path, "copy")


# Opening what was changed


def test_all_differences_are_told_at_once(tmp_path: Path, weights: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights)
    bundle.graph("vision").write_bytes(graph_bytes(b"vision grapH"))
    bundle.graph("decoder").write_bytes(b"longer decoder graph")
    (bundle.directory / "config.json").unlink()
    with (bundle.directory / "model.safetensors").open("r+b") as file:
        file.seek(-5000 * 2, os.SEEK_END)
        file.write(b"\x01\x02")
    with pytest.raises(UserError) as caught:
        open_bundle(bundle.directory)
    message = str(caught.value)
    assert "vision.onnx: its content changed" in message
    assert f"decoder.onnx: 20 bytes, recorded were {len(graph_bytes(b'decoder graph'))}" in message
    assert "config.json: missing" in message
    assert "model.safetensors: its content changed" in message


def test_linked_weights_that_were_changed_in_place_are_noticed(tmp_path: Path, weights: Path) -> None:
    with writing_bundle(tmp_path / "bundle") as directory:
        fill(directory, place_weights([weights], directory, "link"), mode="link")
    assert open_bundle(tmp_path / "bundle").manifest.weights[0].sha256 is None
    with weights.open("r+b") as file:
        file.seek(-5000 * 2, os.SEEK_END)
        file.write(b"\x01\x02")
    with pytest.raises(UserError, match=r"model\.safetensors: its content changed"):
        open_bundle(tmp_path / "bundle")


def test_weights_behind_a_symbolic_link_are_refused_with_advice(tmp_path: Path, weights: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights)
    placed = bundle.directory / "model.safetensors"
    placed.unlink()
    placed.symlink_to(weights)
    with pytest.raises(UserError, match="cp -rL"):
        open_bundle(bundle.directory)


def test_what_is_no_bundle_is_told_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError, match="qv-export export CHECKPOINT"):
            open_bundle(path)


# What a stranger may have put in


def rewrite_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "name", ["processor_config.json", "chat_template.jinja", "notes.txt", "more/file", "vision.onnx.data"]
)
def test_a_file_that_no_manifest_lists_is_refused_and_named(tmp_path: Path, weights: Path, name: str) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name.partition('/')[0]}: is not in the manifest"):
        open_bundle(directory)


def test_what_a_bundle_keeps_beside_its_files_is_no_foreign_file(tmp_path: Path, weights: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights)
    for name in ("engines/0123/engine.json", "verdicts/0123.json", ".gitattributes", ".cache/huggingface/x"):
        (bundle.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle.directory / name).touch()
    assert open_bundle(bundle.directory).manifest == bundle.manifest


@pytest.mark.parametrize("name", ["config.json", "vision.onnx", "engines", "verdicts", "manifest.json"])
def test_a_link_is_refused_whatever_it_leads_to(tmp_path: Path, weights: Path, name: str) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    elsewhere = tmp_path / "elsewhere"
    if (directory / name).exists():
        (directory / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (directory / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name}.* link"):
        open_bundle(directory)


@pytest.mark.parametrize("name", ["config.json", "decoder.onnx", "model.safetensors", "manifest.json"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, weights: Path, name: str) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(UserError, match=f"{name}.*not a regular file but a pipe"):
        open_bundle(directory)


def test_a_companion_without_a_digest_is_refused(tmp_path: Path, weights: Path) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    [entry] = json.loads((directory / "manifest.json").read_text())["files"]
    rewrite_manifest(directory, files=[{**entry, "sha256": None}])
    with pytest.raises(UserError, match=r"config\.json: sha256 must be one: only linked weights have none"):
        open_bundle(directory)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"files": []}, "files must hold config.json"),
        ({"weights": []}, r"model\.safetensors: is not in the manifest"),
    ],
)
def test_a_manifest_that_lists_less_than_there_is_is_refused(
    tmp_path: Path, weights: Path, changes: dict[str, object], problem: str
) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    rewrite_manifest(directory, **changes)
    with pytest.raises(UserError, match=problem):
        open_bundle(directory)


@pytest.mark.parametrize(
    "name", ["engines/0123/engine.json", "verdicts/x.json", "manifest.json", "config.json"]
)
def test_a_name_that_is_taken_is_refused(tmp_path: Path, weights: Path, name: str) -> None:
    directory = write_bundle(tmp_path / "bundle", weights).directory
    [entry] = json.loads((directory / "manifest.json").read_text())["files"]
    rewrite_manifest(directory, files=[entry, {**entry, "name": name}])
    with pytest.raises(UserError, match=r"keeps for itself|different names"):
        open_bundle(directory)


def test_a_graph_that_reads_other_bytes_is_refused_with_right_digests(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    with writing_bundle(tmp_path / "bundle") as directory:
        manifest = fill(directory, place_weights([weights], directory, "copy"))
        model = onnx.load(directory / "decoder.onnx", load_external_data=False)
        weight = model.graph.initializer.add(name="w", data_type=1, dims=[4], data_location=1)
        for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16")):
            weight.external_data.add(key=key, value=value)
        onnx.save(model, directory / "decoder.onnx")
        graphs = {**manifest.graphs, "decoder": FileRecord.from_file(directory / "decoder.onnx")}
        replace(manifest, graphs=graphs).write(directory)
    with pytest.raises(UserError, match=r"decoder\.onnx: w: lies in '\.\./secret'"):
        open_bundle(tmp_path / "bundle")
