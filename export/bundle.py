"""Bundles: written so that a killed run leaves the last good one, opened so that a changed one is noticed.

A bundle is a directory: `manifest.json`, `vision.onnx`, `decoder.onnx`, the weight files that the graphs point into,
the checkpoint's configuration, tokenizer and processor files, and `engines/` once some were built.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from export.checkpoint.config import ModelConfig, load_config
from export.checkpoint.generation_config import GenerationConfig, checkpoint_generation_config
from export.contract import (
    DecoderStage,
    GraphContract,
    GraphName,
    graph_contract,
)
from export.errors import UserError
from export.files.directory_swap import DirectoryKind, replacing_directory
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes
from export.models.families import family_of
from export.records.bundle_files import bundle_differences
from export.records.engine_record import ENGINES_DIRECTORY, EngineRecord, engine_records
from export.records.manifest import (
    CHUNK_BYTES,
    FORMAT,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    WeightsMode,
    content_key,
    sha256_of,
)
from export.records.verdicts import VERDICTS_DIRECTORY, Verdict, all_verdicts, read_verdicts
from export.weights.safetensors_file import fingerprint_safetensors
from export.wording import command_line, size_text

__all__ = [
    "ENGINES_DIRECTORY",
    "Bundle",
    "FileRecord",
    "Manifest",
    "WeightsMode",
    "content_key",
    "fingerprint_safetensors",
    "open_bundle",
    "place_weights",
    "recorded_key",
    "sha256_of",
    "writing_bundle",
]

if TYPE_CHECKING:
    from export.processor.processor import Processor


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are the ones that its manifest records.

    Opened and checked once, then handed on: what hangs on it is read when it is first asked for, and once.
    """

    directory: Path
    manifest: Manifest

    def graph(self, name: GraphName) -> Path:
        """A graph's file."""
        return self.directory / self.manifest.graphs[name].name

    @property
    def graph_names(self) -> tuple[GraphName, ...]:
        """The vision encoder, then the decoder's stages in order."""
        return self.manifest.graph_names

    @cached_property
    def rank_stages(self) -> tuple[tuple[DecoderStage, ...], ...]:
        """The decoder's graphs in order, by rank of its tensor-parallel group: of one, unless it was divided.

        Raises:
            UserError: the manifest's stages are not of as many layers as the model has.
        """
        num_layers = self.config.decoder.num_hidden_layers
        layers = self.manifest.stages or (num_layers,)
        if sum(layers) != num_layers:
            raise UserError(
                f"{self.directory}: its decoder's stages have {sum(layers)} layers, config.json says {num_layers}.",
                "Export the checkpoint again.",
            )
        return self.manifest.rank_stages(num_layers)

    @property
    def stages(self) -> tuple[DecoderStage, ...]:
        """The first rank's graphs in order: those of the whole decoder, unless it is divided; one, unless it was cut.

        Raises:
            UserError: see `rank_stages`.
        """
        return self.rank_stages[0]

    def contract(self, name: GraphName, dtype: str | None = None) -> GraphContract:
        """What a graph takes and gives.

        Args:
            name: of `graph_names`.
            dtype: what it computes in; None: as it was exported.
        """
        stages = [stage for stages in self.rank_stages for stage in stages]
        return graph_contract(name, self.rank_config, dtype or self.manifest.dtype, stages)

    @cached_property
    def rank_config(self) -> ModelConfig:
        """The model's, with the sizes that each rank has of the decoder; the same as `config` where it is not divided.

        Raises:
            UserError: see `config`; or the decoder does not divide among the manifest's ranks.
        """
        family = family_of(self.config.model_type)
        return family.rank_config(self.config, 0, self.manifest.tensor_parallel)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's.

        Raises:
            UserError: `config.json` is missing, broken or of another model.
        """
        return load_config(self.directory)

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """How the checkpoint wants its tokens chosen.

        Raises:
            UserError: `generation_config.json` holds values out of range.
        """
        return checkpoint_generation_config(self.directory)

    @cached_property
    def processor(self) -> "Processor":
        """Tokenizer, chat template, image and video settings.

        Raises:
            UserError: a file is missing or broken, or two files contradict each other.
        """
        from export.processor.processor import Processor  # noqa: PLC0415 - Pillow, PyAV, Jinja2, tokenizers

        return Processor.from_directory(self.directory, self.config)

    def engine_directory(self, key: str) -> Path:
        """Where the engine of a key stands, or would."""
        return self.directory / ENGINES_DIRECTORY / key

    def engines(self) -> list[EngineRecord]:
        """The record of every engine that was built from it and can be read."""
        return [
            record for record in engine_records(self.directory).values() if isinstance(record, EngineRecord)
        ]

    def verdicts(self, engine_key: str) -> list[Verdict]:
        """What validations said of the engine of a key, the newest first.

        Raises:
            UserError: they cannot be read.
        """
        return read_verdicts(self.directory, engine_key)

    def all_verdicts(self) -> list[Verdict]:
        """What validations said of any engine, as far as it can be read."""
        return all_verdicts(self.directory)

    def weight_digests(self) -> dict[str, str]:
        """sha256 of each weight file by name: reads every byte, which opening does not.

        Raises:
            UserError: a file's bytes are not those that were recorded; each is named.
        """
        digests = {record.name: sha256_of(self.directory / record.name) for record in self.manifest.weights}
        recorded = {record.name: record.sha256 for record in self.manifest.weights}
        changed = [name for name, digest in digests.items() if recorded[name] not in {None, digest}]
        if changed:
            raise UserError(
                f"The weights in {self.directory} changed since the export: {', '.join(changed)}. "
                "Check the disk, and export the checkpoint again."
            )
        return digests

    def engine_digests(self, record: EngineRecord) -> dict[str, str]:
        """sha256 of each file of an engine by its path inside the bundle; see `changed_engine_files`.

        Raises:
            UserError: a file is not as it was built.
        """
        if changed := self.changed_engine_files(record):
            raise UserError(
                f"The engine {record.key} in {self.directory} is not as it was built: {'; '.join(changed)}.",
                "Build it again.",
            )
        return {f"{ENGINES_DIRECTORY}/{record.key}/{file.name}": str(file.sha256) for file in record.files}

    def changed_engine_files(self, record: EngineRecord) -> list[str]:
        """What is wrong with an engine's files. Reads every byte, but for files that it has read and that stayed."""
        directory = self.engine_directory(record.key)
        state = record.files_state(directory)
        if self._whole_engines.get(record.key) == state:
            return []
        if not (changed := list(record.changed_files(directory, read=True))):
            self._whole_engines[record.key] = state
        return changed

    @cached_property
    def _whole_engines(self) -> dict[str, tuple[tuple[int, ...] | None, ...]]:
        """By key: how an engine's files stood when they were read and were right."""
        return {}


def open_bundle(path: Path) -> Bundle:
    """Read the manifest and compare the directory with it: every file recorded, whole, and its own.

    Sizes, digests of graphs and settings, fingerprints of weights, and that graphs read recorded weights alone. A file
    that nobody recorded, a link and a pipe are refused: whoever sent the bundle put it there.

    Raises:
        UserError: no bundle there, an invalid manifest, or files that differ from it; all differences at once.
    """
    manifest_path = path / MANIFEST_NAME
    try:
        content = read_own_bytes(manifest_path, MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_bundle(path) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest_path} cannot be read: {error}") from None
    manifest = Manifest.from_bytes(content, str(manifest_path))
    try:
        problems = bundle_differences(path, manifest)
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error}") from None
    if problems:
        raise UserError(
            f"{path} differs from its manifest:\n- "
            + "\n- ".join(problems)
            + "\nExport the checkpoint again."
        )
    return Bundle(path, manifest)


def _no_bundle(path: Path) -> UserError:
    """What is there instead, as far as it is known."""
    found = f"{path} is not a bundle: {MANIFEST_NAME} not found."
    if path.is_file():
        inside = (path.parent / MANIFEST_NAME).is_file()
        make = f"Make one: {command_line('export', 'CHECKPOINT', '-o', 'BUNDLE')}"
        remedy = f"Give its directory: {path.parent}" if inside else make
        return UserError(f"{path} is not a bundle, which is a directory, but a file.", remedy)
    if (path / "config.json").is_file():
        command = command_line("export", path, "-o", "BUNDLE")
        return UserError(f"{found} It holds a checkpoint.", f"Export that first: {command}")
    return UserError(found, f"Make one: {command_line('export', 'CHECKPOINT', '-o', path)}")


@contextmanager
def writing_bundle(output: Path) -> Iterator[Path]:
    """Give a directory to fill; see `replacing_directory` for how it takes the place of `output`.

    Engines of the old bundle are kept when its key is the new one's: every input of theirs is the same. Under another
    key none could be used again, so they go with the old bundle.

    Raises:
        UserError: `output` is something else than a bundle or an empty directory, or there is no space or permission.
    """
    with replacing_directory(output, _BUNDLE) as scratch:
        yield scratch
        _keep_engines(output, scratch)


def _keep_engines(old: Path, new: Path) -> None:
    """Keep what was built and said of a bundle of the same key.

    Hard links: no byte is copied, and the old bundle stays whole until it is replaced. A verdict names the bytes that
    it was given for, so it counts for none of other weights.
    """
    key = recorded_key(old)
    if key is None or key != recorded_key(new):
        return
    for name in (ENGINES_DIRECTORY, VERDICTS_DIRECTORY):
        _link_tree(old / name, new / name)


def _link_tree(old: Path, new: Path) -> None:
    if not old.is_dir():
        return
    try:
        hidden = shutil.ignore_patterns(".*")  # of builds that are running or were killed
        shutil.copytree(old, new, copy_function=os.link, ignore=hidden)
    except (OSError, shutil.Error):  # a cache: what cannot be linked is made again
        shutil.rmtree(new, ignore_errors=True)


def recorded_key(directory: Path) -> str | None:
    """The key in a bundle's manifest, its files unseen; None where there is no valid manifest."""
    path = directory / MANIFEST_NAME
    try:
        return Manifest.from_bytes(read_own_bytes(path, MAX_JSON_BYTES)).key
    except (OSError, UserError):
        return None


def _holds_manifest(directory: Path) -> bool:
    """True for a manifest of any version, so that a newer qv-export replaces an older one's bundle."""
    try:
        return f'"{FORMAT}"'.encode() in read_own_bytes(directory / MANIFEST_NAME, MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return False


_BUNDLE = DirectoryKind(
    "a bundle",
    is_one=_holds_manifest,
    space_advice="Free some, choose another output, or use --weights link",
)


def require_place(files: Sequence[Path], output: Path, mode: WeightsMode) -> None:
    """Refuse early, before anything takes long, what `place_weights` would refuse later.

    Args:
        files: weight files.
        output: the bundle's directory, which need not exist.
        mode: as it will be placed.

    Raises:
        UserError: too little space for copies, or another file system than hard links can reach.
    """
    parent = next(parent for parent in output.resolve().parents if parent.is_dir())
    if mode == "copy":
        _require_space(files, parent)
        return
    device = parent.stat().st_dev
    if elsewhere := [file for file in files if file.resolve().stat().st_dev != device]:
        raise _link_refused(elsewhere[0].resolve(), output, "it is on another file system")


def place_weights(
    files: Sequence[Path],
    directory: Path,
    mode: WeightsMode,
    progress: Callable[[int], None] | None = None,
) -> list[FileRecord]:
    """Put weight files into a bundle under their own names, as copies or as hard links.

    A copy is hashed while it is copied. A link copies no byte and is recorded by its fingerprint alone; it shares
    its bytes with the checkpoint, so a change in place there changes the bundle too. Symbolic links would be
    cheaper still, but ONNX Runtime refuses weights behind one.

    Args:
        files: weight files.
        directory: of the bundle that is being written.
        mode: copies or links.
        progress: told how many bytes are copied, all files together.

    Raises:
        UserError: two files of one name, too little space, or a hard link that the file system refuses.
    """
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise UserError(f"Weight files must have different names, found {', '.join(sorted(names))}.")
    if mode == "copy":
        _require_space(files, directory)
    if mode == "link":
        return [_linked(file, directory / file.name) for file in files]
    copied_bytes = 0

    def count(num_bytes: int) -> None:
        nonlocal copied_bytes
        copied_bytes += num_bytes
        if progress is not None:
            progress(copied_bytes)

    return [_copied(file, directory / file.name, count) for file in files]


def _copied(source: Path, target: Path, report: Callable[[int], None]) -> FileRecord:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    # Unbuffered: the chunks are large, and a buffered close would raise a full disk's error a second time.
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            written = 0
            while written < count:
                written += writer.write(buffer[written:count])
            report(count)
    return FileRecord(target.name, target.stat().st_size, digest.hexdigest(), fingerprint_safetensors(target))


def _linked(source: Path, target: Path) -> FileRecord:
    # Downloaded checkpoints are often symbolic links into a cache, and os.link does not follow them on Linux.
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise _link_refused(real, target.parent.parent, str(error.strerror)) from None
        raise
    return FileRecord(target.name, target.stat().st_size, None, fingerprint_safetensors(target))


def _link_refused(file: Path, place: Path, reason: str) -> UserError:
    return UserError(
        f"{file} cannot be hard-linked into {place}: {reason}.",
        "Use --weights copy, or an output on the checkpoint's file system.",
    )


def _require_space(files: Sequence[Path], directory: Path) -> None:
    needed_bytes = sum(file.stat().st_size for file in files)
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"Not enough disk space for the weights in {directory.parent}: {size_text(needed_bytes)} needed, "
            f"{size_text(free_bytes)} free.",
            "Choose another output, or use --weights link to copy nothing.",
        )
