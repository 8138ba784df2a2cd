"""Replaces a directory so that a killed run leaves the last good one.

It is filled in a hidden sibling directory and put in place by one rename. That is atomic against a killed process;
after a power cut the file system decides.
"""

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from export.errors import UserError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_OLD_SUFFIX = ".old"
_SCRATCH_MARK = ".writing-"
_OURS = ".qv-export-is-writing"
"""A file in every directory that is being filled: the name of the directory alone may be anybody's."""
_ATTEMPTS = 100


@dataclass(frozen=True)
class DirectoryKind:
    """What is written, and how it is told from a directory that is not ours to replace."""

    name: str
    """With its article, for messages: "a bundle"."""
    is_one: Callable[[Path], bool]
    space_advice: str
    """What to do on a full disk: "Free some"."""
    is_leftover: Callable[[Path], bool] | None = None
    """Whether a directory under a scratch name was put together by us; None: `is_one` says it."""


@contextmanager
def replacing_directory(output: Path, kind: DirectoryKind) -> Iterator[Path]:
    """Give a directory to fill; put it in the place of `output` when the body ends well, else leave nothing.

    The last good directory stays until then, whatever happens. What killed runs left beside it is removed first.

    Raises:
        UserError: `output` is something else than `kind` or an empty directory, or there is no space or permission.
    """
    new_parents: list[Path] = []
    scratch: Path | None = None
    try:
        output = require_replaceable(output, kind)
        with explaining_errors(output, kind, preparing=True):
            new_parents = [parent for parent in output.parents if not parent.exists()]
            output.parent.mkdir(parents=True, exist_ok=True)
            settle_leftovers(output, kind)
            scratch, lock = _locked_scratch(output)
        try:
            with explaining_errors(output, kind):
                yield scratch
                (scratch / _OURS).unlink(missing_ok=True)
                _replace_directory(scratch, output)
        finally:
            os.close(lock)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    # After an exchange the old directory stands under the scratch name.
    shutil.rmtree(scratch, ignore_errors=True)


def require_replaceable(output: Path, kind: DirectoryKind) -> Path:
    """Refuse to replace what is not ours: only a directory of this kind, an empty one or nothing.

    Returns:
        `output` without symbolic links, so that a link `current -> v1` stays and its target is replaced.

    Raises:
        UserError: `output` is something else, or cannot be looked at.
    """
    with explaining_errors(output, kind, preparing=True):
        try:
            output = output.resolve()
        except RuntimeError:  # a loop of links, up to Python 3.12
            raise UserError(f"{output} is a loop of symbolic links.", "Choose another output.") from None
        except ValueError as error:  # a NUL
            raise UserError(f"{str(output)!r} cannot be a path: {error}.", "Choose another output.") from None
        try:  # once: another run may put it in place, or take it away, between two looks
            found = output.stat()
        except FileNotFoundError:
            return output
        if not stat.S_ISDIR(found.st_mode):
            raise UserError(f"{output} exists and is not a directory.", "Choose another output.")
        if os.path.ismount(output):
            raise UserError(
                f"{output} is a mount point, which cannot be replaced.",
                f"Use {output / kind.name.split()[-1]} instead.",
            )
        with suppress(FileNotFoundError):
            if not any(output.iterdir()):
                return output
        if not kind.is_one(output) and output.exists():
            raise UserError(
                f"{output} exists and is not {kind.name}; it will not be replaced.", "Choose another output."
            )
    return output


@contextmanager
def explaining_errors(
    output: Path, kind: DirectoryKind, *, preparing: bool = False, left: str = "Nothing was written."
) -> Iterator[None]:
    """Say of the body's errors what the user can mend: space, permission and, while preparing, the path.

    Args:
        output: what is being written.
        kind: names it, and what to do on a full disk.
        preparing: a path that cannot be one is the user's mistake too.
        left: a sentence about what is there after an error.

    Raises:
        UserError: one of those. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if user_error := _user_error(error, output, kind, preparing=preparing, left=left):
            raise user_error from error
        raise


def _scratch_prefix(output: Path) -> str:
    return f".{output.name}{_SCRATCH_MARK}"


def unfinished(directory: Path) -> set[str]:
    """Names in `directory` that a running or a killed process writes or wrote."""
    return {path.name[1:].partition(_SCRATCH_MARK)[0] for path in directory.glob(f".*{_SCRATCH_MARK}*")}


def _locked_scratch(output: Path) -> tuple[Path, int]:
    """Make the directory to fill, lock it and mark it as ours. The kernel drops the lock of a killed process."""
    can_make = True
    for _ in range(_ATTEMPTS):
        scratch = output.parent / f"{_scratch_prefix(output)}{secrets.token_hex(4)}"
        can_make = False
        try:
            scratch.mkdir(parents=True)
            can_make = True
            lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, FileExistsError):
            continue  # another run took it for a leftover, or the folder above it for its own
        # Some network file systems lock no directory: then the directory is not protected, which only
        # another run with the same output could notice.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            (scratch / _OURS).touch()
        except FileNotFoundError:  # taken for a leftover between mkdir and flock
            os.close(lock)
            continue
        except BaseException:
            os.close(lock)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return scratch, lock
    if can_make:
        raise _contended(output)
    raise UserError(f"{output.parent} takes no directory.", "Choose another output.")


def _contended(output: Path) -> UserError:
    return UserError(f"Too many runs write {output} at once.", "Let the others end, and run this one again.")


def settle_leftovers(output: Path, kind: DirectoryKind) -> None:
    """Tidy up after killed runs with this output: remove directories of ours that no living process has locked."""
    for leftover in output.parent.glob(f"{glob.escape(_scratch_prefix(output))}*"):
        try:
            lock = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # not a directory of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _settle(leftover, output, kind)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)


def _settle(leftover: Path, output: Path, kind: DirectoryKind) -> None:
    """Remove a leftover, or bring it back; what does not show that we made it stays as it is."""
    is_whole = (kind.is_leftover or kind.is_one)(leftover)
    if leftover.suffix == _OLD_SUFFIX and is_whole and not output.exists():
        leftover.rename(output)  # killed between two renames: this is the last good one
    elif is_whole or (leftover / _OURS).is_file():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.rmdir()  # killed before it was marked, so empty; fails on anything else


def _replace_directory(scratch: Path, output: Path) -> None:
    """Put `scratch` in the place of `output`; what was there is left under the name of `scratch`.

    Another run may put its own there, or take it away, between any two steps: then it is looked at again.
    """
    for _ in range(_ATTEMPTS):
        try:
            if not output.exists():
                scratch.rename(output)
            elif not _exchange(scratch, output):
                _replace_in_two_steps(scratch, output)
            return
        except OSError as error:
            if error.errno not in _RACES or not scratch.exists():
                raise
    raise _contended(output)


_RACES = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY}


def _replace_in_two_steps(scratch: Path, output: Path) -> None:
    """For file systems that exchange nothing: `output` is absent for an instant between two renames."""
    old = scratch.with_name(scratch.name + _OLD_SUFFIX)
    output.rename(old)
    try:
        scratch.rename(output)
    except BaseException:
        _bring_back(old, output)
        raise
    with suppress(FileNotFoundError):  # another run took it for a leftover, which it is by now
        old.rename(scratch)


def _bring_back(old: Path, output: Path) -> None:
    try:
        old.rename(output)
    except OSError as error:
        if error.errno not in _RACES:
            raise
        shutil.rmtree(old, ignore_errors=True)  # another run's stands there: this one was replaced by it


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


def _user_error(
    error: OSError, output: Path, kind: DirectoryKind, *, preparing: bool, left: str
) -> UserError | None:
    """Name what the user can mend: space, permission, the path. Other errors are the machine's."""
    if error.errno in _NO_SPACE:
        return UserError(
            f"No space left while writing {output} ({error.strerror}). {kind.space_advice}. {left}"
        )
    place = error.filename if error.filename is not None else output
    if error.errno in _NO_PERMISSION:
        return UserError(
            f"No permission at {place} ({error.strerror}) while writing {output}. Check its owner and mode, "
            f"or choose another output. {left}"
        )
    if preparing and error.errno in _BAD_PATH:
        return UserError(
            f"{place} cannot be the place of {kind.name}: {error.strerror}.", "Choose another output."
        )
    return None
