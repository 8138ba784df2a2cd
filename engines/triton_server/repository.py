"""How does a bundle become a model repository that `tritonserver` serves as it is?

    MODEL_REPOSITORY/
        README.md, deployment.json    what is in here, and how it was judged
        qwen2_vl/config.pbtxt
        qwen2_vl/1/model.py           two lines: the model's code is in runtime/
        qwen2_vl/1/runtime/           this package's source, of the very version that wrote the bundle's place here
        qwen2_vl/1/bundle/            the bundle, hard-linked where the file system can

The runtime travels with the repository, so a server needs no more than the packages that it imports
(examples/triton/requirements.txt), and an upgrade of the one never meets the other half-way.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engines.triton_server.config import chat_config, config_text
from engines.triton_server.interface import CHAT_INPUTS, MODEL_NAME
from engines.triton_server.settings import ServerSettings
from export.bundle import Bundle
from export.directory_swap import DirectoryKind, replacing_directory
from export.errors import UserError
from export.json_object import read_json_object
from export.manifest import MANIFEST_NAME

FORMAT = "qv-export model repository"
RECORD_NAME = "deployment.json"
_BUNDLE, _RUNTIME = "bundle", "runtime"
_PACKAGES = ("engines", "export", "plugins")
_MODEL_FILE = '''"""What Triton loads: the model of the runtime beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "runtime"))

from engines.triton_server.model import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class Deployment:
    """What `deployment.json` says of a repository."""

    bundle_key: str
    source: str
    dtype: str
    verdict: Mapping[str, Any] | None
    """The validator's, as it stood in the bundle's manifest."""
    is_validated: bool
    settings: Mapping[str, Any]
    qv_export_version: str
    created: str

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def write_repository(
    bundle: Bundle, output: Path, settings: ServerSettings, *, allow_unvalidated: bool = False
) -> Deployment:
    """Write the repository, or replace one that is there once the new one is whole.

    Raises:
        UserError: the bundle was not validated or failed, and that is not allowed; `output` is no place for it.
    """
    is_validated = bool(bundle.manifest.verdict and bundle.manifest.verdict.get("passed"))
    if not (is_validated or allow_unvalidated):
        raise UserError(_not_validated(bundle))
    deployment = Deployment(
        bundle_key=bundle.manifest.key,
        source=bundle.manifest.source.name,
        dtype=bundle.manifest.dtype,
        verdict=bundle.manifest.verdict,
        is_validated=is_validated,
        settings=asdict(settings),
        qv_export_version=version("qv-export"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with replacing_directory(output, _REPOSITORY) as scratch:
        model = scratch / MODEL_NAME
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(config_text(chat_config(settings)), encoding="utf-8")
        (model / "1" / "model.py").write_text(_MODEL_FILE, encoding="utf-8")
        _place_runtime(model / "1" / _RUNTIME)
        _place_bundle(bundle, model / "1" / _BUNDLE)
        (scratch / RECORD_NAME).write_text(deployment.to_json(), encoding="utf-8")
        (scratch / "README.md").write_text(_readme(deployment), encoding="utf-8")
    return deployment


def _not_validated(bundle: Bundle) -> str:
    what = "failed its validation" if bundle.manifest.verdict else "was not validated"
    return (
        f"{bundle.directory} {what}: nobody has shown that its engine computes what the model means. Run "
        f"`qv-export validate {bundle.directory} --report REPORT`, or deploy it all the same with --allow-unvalidated; "
        "the repository will say so."
    )


def _place_runtime(directory: Path) -> None:
    """Copy the source of this very installation; tests, caches and what a server never imports stay away."""
    root = Path(__file__).parents[2]
    for package in _PACKAGES:
        shutil.copytree(
            root / package,
            directory / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.md", "reference", "graphs"),
        )


def _place_bundle(bundle: Bundle, directory: Path) -> None:
    """Manifest and every recorded file; engines stay where they are, the CPU variant has none."""
    for name in (MANIFEST_NAME, *(record.name for record in bundle.manifest.records())):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = (bundle.directory / name).resolve()
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)


def _is_repository(directory: Path) -> bool:
    try:
        return read_json_object(directory / RECORD_NAME).get("format") == FORMAT
    except UserError:
        return False


_REPOSITORY = DirectoryKind("a model repository", is_one=_is_repository, space_advice="Free some")


def _readme(deployment: Deployment) -> str:
    verdict = (
        "It passed its validation."
        if deployment.is_validated
        else "**It was deployed without a passed validation (--allow-unvalidated): its numbers are not proven.**"
    )
    written_by = f"written by qv-export {deployment.qv_export_version} on {deployment.created}"
    rows = [
        f"| `{tensor.name}` | {tensor.data_type} {list(tensor.shape)} | {tensor.doc} |"
        for tensor in CHAT_INPUTS
    ]
    return "\n".join(
        [
            f"# {deployment.source} for Triton Inference Server",
            "",
            f"Bundle {deployment.bundle_key}, {deployment.dtype}, {written_by}. {verdict}",
            "",
            "    tritonserver --model-repository=THIS_DIRECTORY --disable-auto-complete-config",
            f"    curl localhost:8000/v2/models/{MODEL_NAME}/generate_stream -d @request.json",
            "",
            "where request.json is, for instance,",
            "",
            "    " + json.dumps({"messages": json.dumps([{"role": "user", "content": "Hello"}])}),
            "",
            "| input | type | what |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
