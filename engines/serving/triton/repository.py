"""A model repository from a bundle, which `tritonserver` serves as it is.

    MODEL_REPOSITORY/
        README.md, deployment.json    what is in here, and how it was judged
        qwen2_vl/config.pbtxt
        qwen2_vl/1/model.py           two lines: the model's code is in runtime/
        qwen2_vl/1/runtime/           this package's source, of the very version that wrote the bundle's place here
        qwen2_vl/1/bundle/            the bundle with the engine that is served, hard-linked where the file system can
        preprocess/, vision_encoder/  where the parts are asked for: each with what it needs, as a server may load one
                                      alone

The runtime travels with the repository, so a server needs no more than the packages that it imports
(examples/triton/requirements.txt), and an upgrade of the one never meets the other half-way.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from engines.backends import backend_of
from engines.open import Choice, choice_to_serve
from engines.proof import digests_of, find_proof
from engines.serving.settings import ServerSettings
from engines.serving.triton.config import chat_config, config_text, preprocess_config, vision_encoder_config
from engines.serving.triton.interface import CHAT_INPUTS, MODEL_NAME, PREPROCESS_NAME, VISION_ENCODER_NAME
from export.bundle import ENGINES_DIRECTORY, Bundle
from export.errors import UserError
from export.files.atomic import link_or_copy
from export.files.directory_swap import DirectoryKind, replacing_directory
from export.files.json_object import read_json_object
from export.records.engine_record import RECORD_NAME as ENGINE_RECORD_NAME
from export.records.engine_record import EngineRecord
from export.records.manifest import MANIFEST_NAME
from export.records.verdicts import Verdict

FORMAT = "qv-export model repository"
RECORD_NAME = "deployment.json"
_BUNDLE, _RUNTIME = "bundle", "runtime"
_PACKAGES = ("engines", "export", "plugins")
_MODEL_FILE = '''"""What Triton loads: the model of the runtime beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "runtime"))

from engines.serving.triton.{module} import TritonPythonModel  # noqa: E402, F401
'''
_MODULES = {MODEL_NAME: "model", PREPROCESS_NAME: "preprocess", VISION_ENCODER_NAME: "vision_encoder"}


@dataclass(frozen=True)
class Deployment:
    """What `deployment.json` says of a repository."""

    bundle_key: str
    source: str
    dtype: str
    precision: str
    """`dtype`, and what of the weights is stored otherwise, in words."""
    engine_key: str
    """Of what answers."""
    verdict: Mapping[str, Any] | None
    """The one that proves what answers; None where it was deployed without."""
    is_validated: bool
    settings: Mapping[str, Any]
    qv_export_version: str
    created: str

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"


def write_repository(
    bundle: Bundle,
    output: Path,
    settings: ServerSettings,
    *,
    has_parts: bool = False,
    allow_unvalidated: bool = False,
) -> Deployment:
    """Write the repository, or replace one that is there once the new one is whole.

    Args:
        bundle: what is served.
        output: the repository.
        settings: of the models; with an engine they run on a GPU.
        has_parts: also serve preprocessing and the vision encoder as models of their own.
        allow_unvalidated: also where no passed validation of that very engine is on record.

    Raises:
        UserError: the bundle was not validated or failed, and that is not allowed; no such engine, or one that is too
            small for the settings or that the parts cannot use; a device; `output` is no place for it.
    """
    if settings.device is not None:
        raise UserError(
            f"--device {settings.device}: in Triton ONNX Runtime computes on the CPU, and an engine on the first GPU "
            "that the server sees.",
            "Leave --device out, and name another GPU in the server's CUDA_VISIBLE_DEVICES.",
        )
    chosen = choice_to_serve(bundle, settings.engine)
    engine = chosen.record
    if engine is not None:
        _require_able(engine, settings, has_parts=has_parts)
    verdict = _proof(bundle, chosen, allow_unvalidated=allow_unvalidated)
    deployment = Deployment(
        bundle_key=bundle.manifest.key,
        source=bundle.manifest.source.name,
        dtype=bundle.manifest.dtype,
        precision=bundle.manifest.precision_text,
        engine_key=chosen.key,
        verdict=None if verdict is None else verdict.to_json(),
        is_validated=verdict is not None,
        settings=asdict(settings),
        qv_export_version=version("qv-export"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    config = bundle.config
    with replacing_directory(output, _REPOSITORY) as scratch:
        _write_python_model(scratch, chat_config(settings), bundle, engine)
        if has_parts:
            _write_python_model(scratch, preprocess_config(settings, config), bundle, None, has_graphs=False)
            vision = vision_encoder_config(settings, config, bundle.manifest.dtype)
            if engine is None:
                _write_python_model(scratch, vision, bundle, None)
            else:
                version_directory = _write_config(scratch, vision)
                plan = bundle.engine_directory(engine.key) / "vision.engine"
                link_or_copy(plan, version_directory / "model.plan")
        (scratch / RECORD_NAME).write_text(deployment.to_json(), encoding="utf-8")
        (scratch / "README.md").write_text(_readme(deployment), encoding="utf-8")
    return deployment


def _require_able(record: EngineRecord, settings: ServerSettings, *, has_parts: bool) -> None:
    """Refuse an engine that cannot do what the settings ask."""
    if not backend_of(record.target).needs_engine:
        raise UserError(
            f"The engine {record.key} is a record of limits alone: {record.target} opens the graphs themselves.",
            "Leave --engine out, and give its limits as --slots and --max-context.",
        )
    problems = [
        f"{settings_name} {asked} is more than its {limit} {record.limits[limit]}"
        for settings_name, asked, limit in (
            ("--slots", settings.num_slots, "max_batch"),
            ("--max-context", settings.capacity, "max_context"),
        )
        if asked > record.limits[limit]
    ]
    if has_parts and backend_of(record.target).triton_platform is None:
        problems.append(f"--parts: Triton's TensorRT backend loads no engine of {record.target}")
    if problems:
        raise UserError(f"The engine {record.key} cannot serve that:\n- " + "\n- ".join(problems))


def _proof(bundle: Bundle, chosen: Choice, *, allow_unvalidated: bool) -> Verdict | None:
    """The verdict that proves what will answer. Bytes that differ from what was recorded are refused in any case."""
    digests = digests_of(bundle, chosen)
    try:
        return find_proof(bundle, chosen, digests)
    except UserError:
        if allow_unvalidated:
            return None
        raise


def _write_config(repository: Path, config: Message) -> Path:
    """A model's directory with its configuration; gives the directory of its first version."""
    directory: Path = repository / config.name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config_text(config), encoding="utf-8")
    return directory / "1"


def _write_python_model(
    repository: Path,
    config: Message,
    bundle: Bundle,
    engine: EngineRecord | None,
    *,
    has_graphs: bool = True,
) -> None:
    directory = _write_config(repository, config)
    module = _MODULES[config.name]
    (directory / "model.py").write_text(_MODEL_FILE.format(module=module), encoding="utf-8")
    _place_runtime(directory / _RUNTIME)
    _place_bundle(bundle, directory / _BUNDLE, engine, has_graphs=has_graphs)


def _place_runtime(directory: Path) -> None:
    """Copy the source of this very installation; tests, caches and what a server never imports stay away."""
    root = Path(__file__).parents[3]
    for package in _PACKAGES:
        shutil.copytree(
            root / package,
            directory / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.md", "graphs"),
        )


def _place_bundle(bundle: Bundle, directory: Path, engine: EngineRecord | None, *, has_graphs: bool) -> None:
    """Manifest and recorded files, with or without graphs and weights, and of the engines the one that is served."""
    records = bundle.manifest.records() if has_graphs else bundle.manifest.files
    for name in (MANIFEST_NAME, *(record.name for record in records)):
        _place(bundle.directory / name, directory / name)
    if engine is not None:
        names = (ENGINE_RECORD_NAME, *(record.name for record in engine.files))
        for name in names:
            source = bundle.engine_directory(engine.key) / name
            _place(source, directory / ENGINES_DIRECTORY / engine.key / name)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)


def _is_repository(directory: Path) -> bool:
    try:
        return read_json_object(directory / RECORD_NAME).get("format") == FORMAT
    except UserError:
        return False


_REPOSITORY = DirectoryKind("a model repository", is_one=_is_repository, space_advice="Free some")


def _readme(deployment: Deployment) -> str:
    proof = deployment.verdict
    verdict = (
        f"What answers passed its validation ({proof['level']}, {proof['num_gates']} gates of {proof['multiple']:g} "
        f"times the noise, {proof['created']})."
        if proof is not None
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
            f"Bundle {deployment.bundle_key}, {deployment.precision}, {written_by}. {verdict}",
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
