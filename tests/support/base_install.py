"""An installation of qv-export with the packages of its base alone: what `pip install .` brings, and nothing else."""

import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def base_requirements() -> list[Requirement]:
    """Of pyproject.toml, without any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(map(Requirement, project["dependencies"]))


def base_distributions() -> dict[str, Distribution]:
    """By canonical name: what the base asks for, and what that asks for in turn."""
    found: dict[str, Distribution] = {}
    asked = base_requirements()
    seen: set[tuple[str, frozenset[str]]] = set()
    while asked:
        requirement = asked.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = distribution(requirement.name)
        for further in map(Requirement, found[key[0]].requires or ()):
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                asked.append(further)
    return found


def make_base_install(directory: Path) -> Path:
    """Links to everything that the base's distributions installed, qv-export's own metadata included."""
    directory.mkdir(parents=True)
    for found in [*base_distributions().values(), distribution("qv-export")]:
        for top in {path.parts[0] for path in found.files or () if path.parts[0] != ".."}:
            target = Path(str(found.locate_file(top)))
            if target.exists() and not (directory / top).exists():
                (directory / top).symlink_to(target)
    return directory


def in_base_install(
    packages: Path, *arguments: object, cwd: Path = ROOT, code: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `qv-export ARGUMENTS`, or Python code, where only those packages can be imported."""
    command = ["-c", code] if code is not None else ["-m", "qv_export", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-S", *command],
        cwd=cwd,
        env={"PYTHONPATH": f"{ROOT}:{packages}", "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
