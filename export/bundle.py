"""How is a bundle written so that a killed run leaves the last good one, and opened so that a changed one is noticed?

A bundle is a directory: `manifest.json`, `vision.onnx`, `decoder.onnx`, the weight files that the graphs point into,
and the checkpoint's configuration, tokenizer and processor files. It is filled in a hidden sibling directory and
put in place by one rename. That is atomic against a killed process; after a power cut the file system decides.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from export.errors import UserError
from export.manifest import (
    CHUNK_BYTES,
    FORMAT,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    WeightsMode,
    content_key,
    sha256_of,
)
from export.safetensors_file import fingerprint_safetensors

__all__ = [
    "Bundle",
    "FileRecord",
    "Manifest",
    "WeightsMode",
    "content_key",
    "fingerprint_safetensors",
    "open_bundle",
    "place_weights",
    "sha256_of",
    "writing_bundle",
]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_OLD_SUFFIX = ".old"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are the ones that its manifest records."""

    directory: Path
    manifest: Manifest

    @property
    def vision_graph(self) -> Path:
        return self.directory / self.manifest.graphs["vision"].name

    @property
    def decoder_graph(self) -> Path:
        return self.directory / self.manifest.graphs["decoder"].name


def open_bundle(path: Path) -> Bundle:
    """Read the manifest and compare every recorded file with it: sizes, graph digests, weight fingerprints.

    Raises:
        UserError: no bundle there, an invalid manifest, or files that differ from it; all differences at once.
    """
    manifest_path = path / MANIFEST_NAME
    try:
        text = manifest_path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a bundle: {MANIFEST_NAME} not found. Make one with `qv-export export CHECKPOINT -o {path}`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{manifest_path} cannot be read: {error}") from None
    manifest = Manifest.from_json(text, str(manifest_path))
    weight_names = {record.name for record in manifest.weights}
    problems = [
        f"{record.name}: {problem}"
        for record in manifest.records()
        if (problem := _difference(path / record.name, record, is_weight=record.name in weight_names))
    ]
    if problems:
        raise UserError(
            f"{path} differs from its manifest:\n- "
            + "\n- ".join(problems)
            + "\nExport the checkpoint again."
        )
    return Bundle(path, manifest)


def _difference(path: Path, record: FileRecord, *, is_weight: bool) -> str | None:
    """What is wrong with a recorded file; None if nothing is."""
    if not path.is_file():
        return "missing"
    if is_weight and path.is_symlink():
        return "is a symbolic link, which ONNX Runtime refuses for weights; copy the bundle with `cp -rL`"
    size_bytes = path.stat().st_size
    if size_bytes != record.bytes:
        return f"{size_bytes} bytes, recorded were {record.bytes}"
    try:
        return None if _has_recorded_content(path, record) else "its content changed since the export"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _has_recorded_content(path: Path, record: FileRecord) -> bool:
    """Compare by fingerprint where there is one: a weight file is not read as a whole."""
    if record.fingerprint:
        return fingerprint_safetensors(path) == record.fingerprint
    return record.sha256 is None or sha256_of(path) == record.sha256


@contextmanager
def writing_bundle(output: Path) -> Iterator[Path]:
    """Give a directory to fill; put it in the place of `output` when the body ends well, else leave nothing.

    The last good bundle stays until then, whatever happens. What killed runs left beside it is removed first.

    Raises:
        UserError: `output` is something else than a bundle or an empty directory, or there is no space or permission.
    """
    new_parents: list[Path] = []
    scratch: Path | None = None
    try:
        output = _resolved(output)
        _require_replaceable(output)
        new_parents = [parent for parent in output.parents if not parent.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        _settle_leftovers(output)
        scratch, lock = _locked_scratch(output)
        try:
            yield scratch
            _replace_directory(scratch, output)
        finally:
            os.close(lock)
    except BaseException as error:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and (
            user_error := _user_error(error, output, preparing=scratch is None)
        ):
            raise user_error from error
        raise
    # After an exchange the old bundle stands under the scratch name.
    shutil.rmtree(scratch, ignore_errors=True)


def place_weights(files: Sequence[Path], directory: Path, mode: WeightsMode) -> list[FileRecord]:
    """Put weight files into a bundle under their own names, as copies or as hard links.

    A copy is hashed while it is copied. A link copies no byte and is recorded by its fingerprint alone; it shares
    its bytes with the checkpoint, so a change in place there changes the bundle too. Symbolic links would be
    cheaper still, but ONNX Runtime refuses weights behind one.

    Raises:
        UserError: two files of one name, too little space, or a hard link that the file system refuses.
    """
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise UserError(f"Weight files must have different names, found {', '.join(sorted(names))}.")
    if mode == "copy":
        _require_space(files, directory)
    place = _copied if mode == "copy" else _linked
    return [place(file, directory / file.name) for file in files]


def _copied(source: Path, target: Path) -> FileRecord:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    # Unbuffered: the chunks are large, and a buffered close would raise a full disk's error a second time.
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            written = 0
            while written < count:
                written += writer.write(buffer[written:count])
    return FileRecord(target.name, target.stat().st_size, digest.hexdigest(), fingerprint_safetensors(target))


def _linked(source: Path, target: Path) -> FileRecord:
    # Downloaded checkpoints are often symbolic links into a cache, and os.link does not follow them on Linux.
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise UserError(
                f"{real} cannot be hard-linked into {target.parent.parent}: {error.strerror}. "
                "Use --weights copy, or an output on the checkpoint's file system."
            ) from None
        raise
    return FileRecord(target.name, target.stat().st_size, None, fingerprint_safetensors(target))


def _require_space(files: Sequence[Path], directory: Path) -> None:
    needed_bytes = sum(file.stat().st_size for file in files)
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"Not enough disk space for the weights in {directory.parent}: {needed_bytes / 1e9:.1f} GB needed, "
            f"{free_bytes / 1e9:.1f} GB free. Choose another output, or use --weights link to copy nothing."
        )


def _resolved(output: Path) -> Path:
    """Follow symbolic links, so that a link `current -> v1` stays and its target is replaced."""
    try:
        return output.resolve()
    except RuntimeError:  # a loop of links, up to Python 3.12
        raise UserError(f"{output} is a loop of symbolic links. Choose another output.") from None


def _require_replaceable(output: Path) -> None:
    """Refuse to replace what is not ours: only a bundle, an empty directory or nothing."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} exists and is not a directory. Choose another output.")
    if os.path.ismount(output):
        raise UserError(
            f"{output} is a mount point, which cannot be replaced. Use {output / 'bundle'} instead."
        )
    if any(output.iterdir()) and not _holds_manifest(output):
        raise UserError(
            f"{output} exists and is not a bundle; it will not be replaced. Choose another output."
        )


def _holds_manifest(directory: Path) -> bool:
    """True for a manifest of any version, so that a newer qv-export replaces an older one's bundle."""
    try:
        return f'"{FORMAT}"' in (directory / MANIFEST_NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        return False


def _scratch_prefix(output: Path) -> str:
    return f".{output.name}.writing-"


def _locked_scratch(output: Path) -> tuple[Path, int]:
    """Make the directory to fill and lock it. The kernel drops the lock of a killed process."""
    while True:
        scratch = output.parent / f"{_scratch_prefix(output)}{secrets.token_hex(4)}"
        scratch.mkdir()
        lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        # Some network file systems lock no directory: then the directory is not protected, which only
        # another export to the same output could notice.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, lock
        # Another run took it for a leftover between mkdir and flock.
        os.close(lock)


def _settle_leftovers(output: Path) -> None:
    """Tidy up after killed runs: remove directories that no living process has locked."""
    for leftover in output.parent.glob(f"{glob.escape(_scratch_prefix(output))}*"):
        try:
            lock = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # not a directory of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if leftover.suffix == _OLD_SUFFIX and not output.exists():
                leftover.rename(output)  # killed between two renames: this is the last good bundle
            else:
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)


def _replace_directory(scratch: Path, output: Path) -> None:
    """Put `scratch` in the place of `output`; what was there is left under the name of `scratch`."""
    if not output.exists():
        scratch.rename(output)
    elif not _exchange(scratch, output):
        _replace_in_two_steps(scratch, output)


def _replace_in_two_steps(scratch: Path, output: Path) -> None:
    """For file systems that exchange nothing: `output` is absent for an instant between two renames."""
    old = scratch.with_name(scratch.name + _OLD_SUFFIX)
    output.rename(old)
    try:
        scratch.rename(output)
    except BaseException:
        old.rename(output)
        raise
    old.rename(scratch)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step with Linux's renameat2. False where the kernel or the file system has none."""
    at_working_directory, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    code = renameat2(
        at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), rename_exchange
    )
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _user_error(error: OSError, output: Path, *, preparing: bool) -> UserError | None:
    """Name what the user can mend: space, permission, the path. Other errors are the machine's."""
    if error.errno in _NO_SPACE:
        return UserError(
            f"No space left while writing {output} ({error.strerror}). Free some, choose another output, "
            "or use --weights link. Nothing was written."
        )
    place = error.filename if error.filename is not None else output
    if error.errno in _NO_PERMISSION:
        return UserError(
            f"No permission at {place} ({error.strerror}) while writing {output}. Check its owner and mode, "
            "or choose another output. Nothing was written."
        )
    if preparing and error.errno in _BAD_PATH:
        return UserError(f"{place} cannot be a bundle's place: {error.strerror}. Choose another output.")
    return None
