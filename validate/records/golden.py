"""Golden sets: directories of records that belong to one model, and what an interrupted run has already done.

A golden set holds `golden.json` and a record for each case (`validate.records.records`). A run records into one of its
own and stores what it measured beside it, so that it can go on where it was stopped.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.bundle import content_key
from export.errors import UserError
from export.files.directory_swap import DirectoryKind
from export.files.json_object import read_json_object
from export.quantization.describe import KV_CACHE_PART
from export.records.manifest import Manifest
from validate.records.records import write_json

FORMAT = "qv-export golden set"
FORMAT_VERSION = 1
GOLDEN_NAME = "golden.json"
GOLDEN_DIRECTORY = DirectoryKind(
    "a golden set", lambda path: (path / GOLDEN_NAME).is_file(), "Free some, and go on with the same command"
)
RUN_NAME = "run.json"


def model_identity(manifest: Manifest) -> str:
    """Key of the weights, the configuration and a cache in 8 bits; bundles of one checkpoint share it otherwise,
    whatever their graphs' dtype.
    """
    cache = {name: words for name, words in manifest.precision.items() if name == KV_CACHE_PART}
    weights = {f"weights {i}": str(record.fingerprint) for i, record in enumerate(manifest.weights)}
    return content_key({"config": manifest.source.config_sha256, **weights, **cache})


def create_golden(directory: Path, content: Mapping[str, Any]) -> None:
    """Make or continue a golden set.

    Raises:
        UserError: the directory holds something else, or a set of another model or of other cases.
    """
    if directory.is_dir() and any(directory.iterdir()):
        open_golden(directory, content)
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / GOLDEN_NAME, {"format": FORMAT, "format_version": FORMAT_VERSION, **content})


def open_golden(directory: Path, content: Mapping[str, Any]) -> None:
    """Check that a golden set fits.

    Args:
        directory: of the set.
        content: what its `golden.json` must say, such as `model` and `num_decode_steps`.

    Raises:
        UserError: no golden set, or one that says something else; all differences at once.
    """
    path = directory / GOLDEN_NAME
    try:
        found = read_json_object(path)
    except UserError:
        found = {}
    if found.get("format") != FORMAT:
        raise UserError(
            f"{directory} is no golden set: {GOLDEN_NAME} is missing or not one of ours.",
            "Record one with `qv-export validate BUNDLE --record DIRECTORY`.",
        )
    wanted = {"format_version": FORMAT_VERSION, **content}
    problems = [
        f"{name} is {found.get(name)!r}, this run needs {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if problems:
        raise UserError(f"{directory} does not fit this run:\n- " + "\n- ".join(problems))


def open_workspace(directory: Path, run: Mapping[str, Any], *, resume: bool) -> None:
    """Make a run's workspace, or go on in the one of an interrupted run.

    Raises:
        UserError: `resume`, but the interrupted run was another.
    """
    if directory.exists() and not resume:
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RUN_NAME
    if not path.is_file():
        write_json(path, dict(run))
        return
    found = read_json_object(path)
    differences = [name for name in run if found.get(name) != run[name]]
    if differences:
        raise UserError(
            f"The interrupted run in {directory} differs in {', '.join(differences)}.",
            "Give the same options, or start anew without --resume.",
        )
