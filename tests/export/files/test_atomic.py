import ast
import os
from pathlib import Path

import pytest

from export.errors import UserError
from export.files.atomic import link_or_copy, replace_text, replacing_file

ROOT = Path(__file__).resolve().parents[3]
# Directories have a home of their own.
HOMES = {"export/files/atomic.py", "export/files/directory_swap.py"}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), replacing_file(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "file").symlink_to(victim)
    replace_text(tmp_path / "file", "ours")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


def test_links_under_the_scratch_files_name_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)  # even a name that was guessed
    (tmp_path / f".file.{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_text(tmp_path / "file", "ours")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "file").exists()


def test_the_scratch_files_name_is_never_the_same(tmp_path: Path) -> None:
    seen = set()
    for _ in range(20):
        with replacing_file(tmp_path / "file"):
            seen.update(names(tmp_path))
    assert len(seen - {"file"}) == 20


@pytest.mark.parametrize("name", ["x" * 255, "\u3042" * 85])
def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path, name: str) -> None:
    replace_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"


def test_a_file_is_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_is_linked_where_it_can_be_and_copied_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_text("bytes")
    link_or_copy(tmp_path / "source", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "source")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "source", tmp_path / "copied")
    assert not (tmp_path / "copied").samefile(tmp_path / "source")
    assert (tmp_path / "copied").read_text() == "bytes"


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_is_neither_linked_nor_copied(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "link":
        (tmp_path / "secret").write_text("sk-4711")
        source.symlink_to("secret")
    elif kind == "pipe":
        os.mkfifo(source)
    else:
        source.mkdir()
    with pytest.raises(UserError, match="a link or no regular file"):
        link_or_copy(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_no_other_place_of_the_product_replaces_a_file() -> None:
    """`Path.replace`, `Path.rename`, `os.replace` and their kin stand in one home for files and one for directories."""
    found = {
        f"{path.relative_to(ROOT)}"
        for package in ("engines", "export", "plugins", "qv_export", "validate")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _renames(node)
    }
    assert found == HOMES


def _renames(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    is_path_replace = call.func.attr == "replace" and len(call.args) == 1 and not call.keywords
    is_os_replace = call.func.attr == "replace" and ast.unparse(call.func.value) == "os"
    return is_path_replace or is_os_replace or call.func.attr in {"rename", "renames"}


def test_no_other_place_of_the_product_links_or_copies_a_file() -> None:
    """Weights have rules of their own: a copy is hashed on the way, a link of a download cache is followed."""
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node.func)}"
        for package in ("engines", "export", "plugins", "qv_export", "validate")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func)
        in {"os.link", "os.symlink", "shutil.copyfile", "shutil.copy", "shutil.copy2"}
    }
    assert found == {
        "export/bundle.py: os.link",
        "export/files/atomic.py: os.link",
        "export/files/atomic.py: shutil.copyfile",
    }
