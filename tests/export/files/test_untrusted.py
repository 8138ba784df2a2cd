import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import UserError
from export.files.untrusted import foreign_entries, own_path, read_bounded_bytes, read_own_bytes


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_text("sk-4711")
    return path


def link_to_a_link(path: Path, secret: Path) -> None:
    (path.parent / "inner").symlink_to(secret)
    path.symlink_to("inner")


MADE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "link": (lambda path, secret: path.symlink_to(secret), "outside of its directory"),
    "relative link": (
        lambda path, secret: path.symlink_to(os.path.relpath(secret, path.parent)),
        "outside of its",
    ),
    "link to a link": (link_to_a_link, "outside of its directory"),
    "environment": (lambda path, secret: path.symlink_to("/proc/self/environ"), "outside of its directory"),
    "device": (lambda path, secret: path.symlink_to("/dev/zero"), "outside of its directory"),
    "pipe": (lambda path, secret: os.mkfifo(path), "a pipe"),
    "directory": (lambda path, secret: path.mkdir(), "a directory"),
    "large": (lambda path, secret: path.write_bytes(bytes(1001)), "larger than 1,000 bytes"),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_not_the_directorys_own_bounded_file_is_refused_at_once(
    tmp_path: Path, secret: Path, kind: str
) -> None:
    path = tmp_path / "checkpoint" / "config.json"
    path.parent.mkdir()
    make, problem = MADE[kind]
    make(path, secret)
    found: list[BaseException] = []

    def read() -> None:
        try:
            read_own_bytes(path, 1000)
        except UserError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "waits for a file that never ends"
    assert problem in str(found[0])
    assert str(path) in str(found[0])


def test_a_file_and_a_link_inside_of_the_directory_are_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to("real")
    assert read_own_bytes(tmp_path / "real", 1000) == read_own_bytes(tmp_path / "link", 1000) == bytes(1000)
    outside = tmp_path / "elsewhere"
    outside.symlink_to(tmp_path)  # the directory itself may be a link
    assert read_own_bytes(outside / "real", 1000) == bytes(1000)


def hub_cache(root: Path) -> Path:
    """A snapshot as the Hugging Face hub's library lays it out."""
    snapshot = root / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = root / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "abcd").write_bytes(b"content")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    return snapshot


def test_the_blobs_of_a_hub_cache_are_its_snapshots_own(tmp_path: Path) -> None:
    assert read_own_bytes(hub_cache(tmp_path) / "config.json", 1000) == b"content"


def test_a_directory_that_looks_like_a_hub_cache_opens_no_way_out(tmp_path: Path, secret: Path) -> None:
    snapshot = hub_cache(tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "way_out").symlink_to(secret)
    (snapshot / "a").symlink_to("../../blobs/way_out")
    (snapshot / "b").symlink_to(secret)
    for path in blobs.iterdir():
        path.rename(snapshot / path.name)
    blobs.rmdir()
    blobs.symlink_to(secret.parent)
    (snapshot / "c").symlink_to("../../blobs/secret")
    for name in "abc":
        with pytest.raises((UserError, FileNotFoundError)):
            own_path(snapshot / name)


def test_what_the_user_named_may_be_a_link_and_must_be_a_bounded_file(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "link").symlink_to(secret)
    assert read_bounded_bytes(tmp_path / "link", 7) == b"sk-4711"
    with pytest.raises(UserError, match="larger than 6 bytes"):
        read_bounded_bytes(tmp_path / "link", 6)
    with pytest.raises(UserError, match="a device"):
        read_bounded_bytes(Path("/dev/zero"), 6)


def test_entries_that_nobody_recorded_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("known", "sub/known", "sub/other", "kept/anything", ".hidden", "extra", "dir/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "link").symlink_to("known")
    (tmp_path / "linked").symlink_to(tmp_path / "kept")
    found = foreign_entries(tmp_path, {"known", "sub/known", "absent"}, {"kept", "linked"})
    assert sorted(line.partition(":")[0] for line in found) == [
        "dir",
        "extra",
        "linked",
        "sub/link",
        "sub/other",
    ]
