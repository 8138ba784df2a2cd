import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.bundle import open_bundle
from export.errors import UserError
from export.records.manifest import Manifest, content_key, sha256_of
from export.weights.safetensors_file import fingerprint_safetensors
from tests.export.bundle_samples import make_weights, write_bundle


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "checkpoint" / "model.safetensors")


# Fingerprints and keys


def test_a_fingerprint_sees_names_sizes_and_the_head_of_every_tensor(tmp_path: Path, weights: Path) -> None:
    original = fingerprint_safetensors(weights)
    assert fingerprint_safetensors(make_weights(tmp_path / "same.safetensors")) == original
    assert fingerprint_safetensors(make_weights(tmp_path / "tuned.safetensors", seed=1)) != original
    content = bytearray(weights.read_bytes())
    (tmp_path / "renamed.safetensors").write_bytes(content.replace(b"a.weight", b"a.Weight"))
    assert fingerprint_safetensors(tmp_path / "renamed.safetensors") != original
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    b_start = header_bytes + json.loads(content[8:header_bytes])["b.weight"]["data_offsets"][0]
    for offset, seen in ((b_start, True), (b_start + 4095, True), (b_start + 4096, False)):
        changed = bytearray(content)
        changed[offset] ^= 1
        (tmp_path / "changed.safetensors").write_bytes(changed)
        assert (fingerprint_safetensors(tmp_path / "changed.safetensors") != original) == seen


@pytest.mark.parametrize(
    "content", [b"", b"\x02\0\0", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{x"]
)
def test_what_is_no_safetensors_file_is_the_users_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        fingerprint_safetensors(path)


def test_a_truncated_shard_is_the_users_error(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        fingerprint_safetensors(weights)


@given(st.dictionaries(st.text(), st.text(), min_size=1))
def test_a_key_depends_on_every_part_and_not_on_their_order(parts: dict[str, str]) -> None:
    key = content_key(parts)
    assert len(key) == 16
    assert content_key(dict(reversed(parts.items()))) == key
    name = next(iter(parts))
    assert content_key({**parts, name: parts[name] + "x"}) != key
    assert content_key({key: value for key, value in parts.items() if key != name}) != key


def test_a_digest_is_that_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


# The manifest


def test_a_manifest_survives_json(tmp_path: Path, weights: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle", weights).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "other"}, "not a bundle's manifest"),
        ({"format_version": 1}, "format version 1"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"dtype": 3}, "dtype must be a string"),
        ({"tools": {"onnx": 1}}, "onnx must be a string"),
        ({"weights": {}}, "weights must be a list"),
        ({"weights_mode": "steal"}, "weights_mode"),
        ({"graphs": {}}, "vision and decoder"),
        ({"verdict": None}, "unknown keys verdict"),
        ({"source": {"name": "x"}}, "missing keys config_sha256"),
        ({"files": [{"name": "../x", "bytes": 1, "sha256": None, "fingerprint": None}]}, "inside the bundle"),
        (
            {"files": [{"name": "/etc/passwd", "bytes": 1, "sha256": None, "fingerprint": None}]},
            "inside the bundle",
        ),
        ({"files": [{"name": "x", "bytes": True, "sha256": None, "fingerprint": None}]}, "must be a size"),
        ({"files": [{"name": "x", "bytes": 1, "sha256": 5, "fingerprint": None}]}, "string or null"),
        ({"files": ["x"]}, "must be an object"),
    ],
)
def test_a_tampered_manifest_is_refused(
    tmp_path: Path, weights: Path, change: dict[str, object], problem: str
) -> None:
    content = json.loads(write_bundle(tmp_path / "bundle", weights).manifest.to_json())
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=problem):
        open_bundle(tmp_path / "bundle")


def test_wrong_types_and_contradictions_are_told_at_once(tmp_path: Path, weights: Path) -> None:
    content = json.loads(write_bundle(tmp_path / "bundle", weights).manifest.to_json())
    content["dtype"] = 3
    content["stages"] = [1]
    content["weights"][0]["fingerprint"] = None
    content["files"][0]["name"] = content["weights"][0]["name"]
    content["files"][0]["sha256"] = "short"
    with pytest.raises(UserError) as caught:
        Manifest.from_json(json.dumps(content))
    told = caught.value.message
    name = content["weights"][0]["name"]
    for problem in (
        "dtype must be a string, found 3",
        "stages must be a list of numbers of layers",
        f"{name}: fingerprint must be a sha256",
        f"{name}: sha256 must be one",
        f"files must have different names, found {name} twice",
    ):
        assert problem in told


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, weights: Path, text: str) -> None:
    write_bundle(tmp_path / "bundle", weights)
    (tmp_path / "bundle" / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_bundle(tmp_path / "bundle")


def test_a_failed_manifest_write_leaves_the_old_manifest(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle", weights)

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace(bundle.manifest, created="later").write(bundle.directory)
    assert open_bundle(bundle.directory).manifest == bundle.manifest
    assert not list(bundle.directory.glob(".manifest*"))
