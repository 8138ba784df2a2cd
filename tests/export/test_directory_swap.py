from pathlib import Path

import pytest

from export import directory_swap
from export.bundle import open_bundle
from tests.export.bundle_samples import graph_bytes, make_weights, write_bundle


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
