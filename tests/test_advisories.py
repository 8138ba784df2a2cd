"""No bound admits a version that is known to have a hole, and none is installed."""

import datetime as dt
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ADVISORIES = tomllib.loads((ROOT / ".ci" / "advisories.toml").read_text(encoding="utf-8"))


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    yield from project["build-system"]["requires"]
    yield from project["project"]["dependencies"]
    for extra in project["project"]["optional-dependencies"].values():
        yield from extra
    lines = (ROOT / "examples" / "triton" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    yield from (line for line in lines if not line.startswith("#"))


REQUIREMENTS = [Requirement(line) for line in requirements()]


def lowest(requirement):
    """The oldest version that it lets in; None where it names none."""
    known = [one for one in requirement.specifier if one.operator in {">=", "==", "~="}]
    bounds = [Version(one.version.removesuffix(".*")) for one in known]
    return max(bounds, default=None)


def admits(requirement, fixed):
    low = lowest(requirement)
    return low is None or low < Version(fixed)


@pytest.mark.parametrize("advisory", ADVISORIES["advisory"], ids=lambda one: one["id"])
def test_no_bound_admits_a_known_hole(advisory):
    named = [one for one in REQUIREMENTS if canonicalize_name(one.name) == advisory["package"]]
    assert named, "a package that nothing asks for: give it a bound, or take the advisory away"
    assert [str(one) for one in named if admits(one, advisory["fixed"])] == []


@pytest.mark.parametrize("advisory", ADVISORIES["advisory"], ids=lambda one: one["id"])
def test_no_version_with_a_known_hole_is_installed(advisory):
    try:
        installed = version(advisory["package"])
    except PackageNotFoundError:
        pytest.skip(f"{advisory['package']} is not installed here")
    assert Version(installed) >= Version(advisory["fixed"])


@pytest.mark.parametrize(
    ("line", "is_open"),
    [
        ("pillow>=11.3", True),
        ("pillow", True),
        ("pillow<14", True),
        ("pillow>=13", False),
        ("pillow==13.1", False),
    ],
)
def test_an_open_bound_is_seen(line, is_open):
    assert admits(Requirement(line), "13.0.0") == is_open


def test_each_advisory_is_whole_and_the_list_has_a_date():
    assert isinstance(ADVISORIES["checked"], dt.date)
    for advisory in ADVISORIES["advisory"]:
        assert set(advisory) == {"package", "fixed", "id", "what"}
        assert advisory["package"] == canonicalize_name(advisory["package"])
        assert re.fullmatch(r"(CVE-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3})", advisory["id"])


def test_the_documented_codecs_are_those_that_are_decoded():
    from export.processor.media import heif
    from export.processor.video import container

    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for title, codecs in (
        ("Video codecs", container._CODECS),
        ("Codecs of HEIC pictures", heif._CODECS.split(",")),
    ):
        [line] = re.findall(rf"^- {title}: (.*)\.$", text, re.MULTILINE)
        assert line.replace("`", "").split(", ") == sorted(codecs)
