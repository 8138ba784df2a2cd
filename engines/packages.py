"""Which packages are installed, asked of their metadata: nothing heavy is imported to know a version."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def has_module(name: str) -> bool:
    return find_spec(name) is not None


def installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def first_installed_version(distributions: Sequence[str]) -> str | None:
    """Version of the first of several packages that is installed."""
    return next(filter(None, map(installed_version, distributions)), None)


def tool_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Version of everything installed that shapes the bytes of an engine: ours, ONNX, and a backend's own."""
    names = ("qv-export", "onnx", *distributions)
    return {name: found for name in names if (found := installed_version(name))}


def sources_digest(sources: Sequence[str]) -> str:
    """Digest of our own code that shapes what is built: a changed function body or builder makes another engine.

    Args:
        sources: folders below the directory that holds our packages, with forward slashes.
    """
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted((root / source).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
