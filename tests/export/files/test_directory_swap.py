import threading
import traceback
from pathlib import Path

import pytest

from export.bundle import open_bundle, place_weights, writing_bundle
from export.errors import UserError
from export.files import directory_swap
from tests.export.bundle_samples import fill, graph_bytes, make_weights, write_bundle


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "checkpoint" / "model.safetensors")


def siblings(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def test_a_file_system_without_exchange_gets_two_renames(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, weights)
    monkeypatch.setattr(directory_swap, "_exchange", lambda first, second: False)
    assert write_bundle(output, weights, graph=b"second").graph("vision").read_bytes() == graph_bytes(
        b"second"
    )
    assert siblings(output) == ["bundle", "checkpoint"]


def test_a_second_rename_that_fails_brings_the_old_bundle_back(tmp_path: Path, weights: Path) -> None:
    write_bundle(tmp_path / "bundle", weights)
    with pytest.raises(FileNotFoundError):
        directory_swap._replace_in_two_steps(tmp_path / "missing", tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").graph("vision").read_bytes() == graph_bytes(b"vision graph")


def test_two_renames_are_not_used_where_exchange_works(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_swap, "_replace_in_two_steps", lambda *_: pytest.fail("output was absent"))
    write_bundle(tmp_path / "bundle", weights)
    write_bundle(tmp_path / "bundle", weights, graph=b"second")


def test_exchange_swaps_two_directories_here(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert directory_swap._exchange(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first" / "second").exists()
    assert (tmp_path / "second" / "first").exists()


# Whose it is


@pytest.mark.parametrize(
    "name", [".bundle.writing-2024", ".bundle.writing-x.old", ".bundle.writing-00000000"]
)
def test_a_directory_that_we_did_not_mark_is_neither_removed_nor_renamed(
    tmp_path: Path, weights: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("mine")
    write_bundle(tmp_path / "bundle", weights)
    write_bundle(tmp_path / "bundle", weights, graph=b"second")
    assert (tmp_path / name / "diary.txt").read_text() == "mine"


def test_what_we_marked_and_what_was_killed_before_its_mark_is_removed(tmp_path: Path, weights: Path) -> None:
    (tmp_path / ".bundle.writing-1").mkdir()
    (tmp_path / ".bundle.writing-2").mkdir()
    for name in (directory_swap._OURS, "vision.onnx"):
        (tmp_path / ".bundle.writing-2" / name).write_text("half")
    write_bundle(tmp_path / "bundle", weights)
    assert siblings(tmp_path / "bundle") == ["bundle", "checkpoint"]


def test_what_is_put_in_place_holds_no_mark(tmp_path: Path, weights: Path) -> None:
    with writing_bundle(tmp_path / "bundle") as directory:
        assert (directory / directory_swap._OURS).exists()
        fill(directory, place_weights([weights], directory, "copy"))
    assert not (tmp_path / "bundle" / directory_swap._OURS).exists()


# Several runs


@pytest.mark.parametrize("has_exchange", [True, False])
def test_several_runs_with_one_output_leave_one_whole_directory_and_fail_with_a_message_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool
) -> None:
    if not has_exchange:
        monkeypatch.setattr(directory_swap, "_exchange", lambda first, second: False)
    kind = directory_swap.DirectoryKind("a pair", lambda path: (path / "one").is_file(), "Free some")
    output = tmp_path / "deep" / "pair"
    failed: list[BaseException] = []
    written = []

    def write(run: int) -> None:
        for i in range(150):
            try:
                with directory_swap.replacing_directory(output, kind) as scratch:
                    for name in ("one", "two"):
                        (scratch / name).write_text(f"{run} {i}")
                written.append(run)
            except UserError:
                continue
            except BaseException as error:  # noqa: BLE001 - told below, with all others
                failed.append(error)

    threads = [threading.Thread(target=write, args=(run,)) for run in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [traceback.format_exception(error) for error in failed] == []
    assert len(written) > 400
    assert (output / "one").read_text() == (output / "two").read_text()
    assert siblings(output) == ["pair"]


@pytest.mark.parametrize("output", ["/proc/bundle", "a\0b"])
def test_a_place_that_takes_no_directory_is_the_users_to_change(output: str) -> None:
    with pytest.raises(UserError, match="Choose another output"), writing_bundle(Path(output)):
        pytest.fail("the body must not run")
