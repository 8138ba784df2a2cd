"""Whether the files of a bundle are those that its manifest records, all of them and no others."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from export.errors import UserError
from export.files.untrusted import foreign_entries, own_path, read_own_bytes
from export.records.engine_record import ENGINES_DIRECTORY
from export.records.manifest import MANIFEST_NAME, FileRecord, Manifest, sha256_of
from export.records.verdicts import VERDICTS_DIRECTORY
from export.weights.external_data import MAX_GRAPH_BYTES, graph_problems
from export.weights.safetensors_file import StoredTensor, fingerprint_of, read_safetensors_header


def bundle_differences(directory: Path, manifest: Manifest) -> list[str]:
    """What is wrong with a bundle's files, as "NAME: what".

    Missing, changed, linked or not recorded ones, and graphs that read anything but recorded weights.
    Sizes and digests are compared; of weights the fingerprint, which reads little of them.

    Raises:
        OSError: the directory cannot be listed.
    """
    known = {MANIFEST_NAME, *(record.name for record in manifest.records())}
    foreign = foreign_entries(directory, known, {ENGINES_DIRECTORY, VERDICTS_DIRECTORY})
    linked = {line.partition(":")[0] for line in foreign}
    problems = [
        f"{record.name}: {problem}"
        for record in manifest.files
        if record.name not in linked and (problem := _difference(directory / record.name, record))
    ]
    weights: dict[str, list[StoredTensor]] = {}
    problems += [
        f"{record.name}: {problem}"
        for record in manifest.weights
        if record.name not in linked
        and (problem := _weight_difference(directory / record.name, record, weights))
    ]
    are_weights_whole = len(weights) == len(manifest.weights)
    for record in manifest.graphs.values():
        if record.name not in linked:
            found = _graph_differences(
                directory / record.name, record, weights if are_weights_whole else None
            )
            problems += [f"{record.name}: {problem}" for problem in found]
    return [*foreign, *problems]


def _size_difference(path: Path, record: FileRecord) -> str | None:
    """What can be said without reading: missing, no regular file, another size."""
    try:
        size_bytes = own_path(path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    return None if size_bytes == record.bytes else f"{size_bytes} bytes, recorded were {record.bytes}"


def _difference(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file that has a digest; None if nothing is."""
    try:
        if problem := _size_difference(path, record):
            return problem
        return None if sha256_of(path) == record.sha256 else "its content changed since the export"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _weight_difference(path: Path, record: FileRecord, weights: dict[str, list[StoredTensor]]) -> str | None:
    """What is wrong with a weight file; the tensors of one that is whole are put into `weights`."""
    try:
        if problem := _size_difference(path, record):
            return problem
        tensors = read_safetensors_header(path)
        if fingerprint_of(path, tensors) != record.fingerprint:
            return "its content changed since the export"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    weights[record.name] = tensors
    return None


def _graph_differences(
    path: Path, record: FileRecord, weights: dict[str, list[StoredTensor]] | None
) -> Iterator[str]:
    """What is wrong with a graph, of its weights' places only where all weight files are whole."""
    try:
        if problem := _size_difference(path, record):
            yield problem
            return
        content = read_own_bytes(path, MAX_GRAPH_BYTES)
    except UserError as error:
        yield str(error)
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
    else:
        if hashlib.sha256(content).hexdigest() != record.sha256:
            yield "its content changed since the export"
        elif weights is not None:
            yield from graph_problems(content, weights)
