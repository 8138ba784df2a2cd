"""Optional parts of qv-export: the modules of each, whether they are here, and the command that adds one.

qv-export is installed from a clone, a wheel or an index, by pip, pipx or `uv tool`; a command for another one of them
would install into another environment, or fail. How it was installed is written in its own metadata
(`direct_url.json`, PEP 610) and in the tool's receipt beside the environment.
"""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from export.errors import UserError

DISTRIBUTION = "qv-export"

EXTRA_MODULES = {
    "validate": ("torch", "safetensors"),
    "export": ("torch", "safetensors", "onnx_ir", "onnxscript"),
    "polygraphy": ("polygraphy",),
    "rtx": ("tensorrt_rtx_bindings",),
    "parallel": ("mpi4py", "onnxruntime_extensions"),
    "ray": ("ray", "pyarrow", "pandas"),
}
"""What each extra of `[project.optional-dependencies]` brings that qv-export imports, smallest extra first."""

UV_RECEIPT = "uv-receipt.toml"
PIPX_RECEIPT = "pipx_metadata.json"


def missing_modules(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [name for name in EXTRA_MODULES[extra] if find_spec(name) is None]


def require_extra(extra: str, job: str) -> None:
    """Refuse a job early, where nothing was begun.

    Args:
        extra: what it needs, a key of `EXTRA_MODULES`.
        job: the subject of the message, such as "Exporting a checkpoint".

    Raises:
        UserError: a module of the extra is missing; the command that adds it.
    """
    if missing := missing_modules(extra):
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{job} needs {_listed(missing)}, which {verb} not installed.",
            f"Install: {install_command(extra)}",
        )


def missing_module_error(name: str) -> UserError | None:
    """The error for a module that could not be imported; None for one that no extra brings."""
    top = name.partition(".")[0]
    extra = next((extra for extra, modules in EXTRA_MODULES.items() if top in modules), None)
    if extra is None:
        return None
    return UserError(f"This needs {top}, which is not installed.", f"Install: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command line that adds an extra to qv-export where this process runs; extras that are there stay.

    Args:
        extra: a name of `[project.optional-dependencies]`, such as "rtx".
    """
    url, is_editable = _origin()
    flag = "--editable " if is_editable else ""
    if _has(UV_RECEIPT):
        return f"uv tool install --force {flag}{_requirement(url, {extra, *_uv_extras()})}"
    if _has(PIPX_RECEIPT):
        return f"pipx install --force {flag}{_requirement(url, {extra, *_pipx_extras()})}"
    return f"{shlex.quote(sys.executable)} -m pip install {flag}{_requirement(url, {extra})}"


def package_command(*requirements: str) -> str:
    """The command line that installs other packages where this process runs."""
    quoted = " ".join(map(shlex.quote, requirements))
    if _has(UV_RECEIPT):
        url, is_editable = _origin()
        given = " ".join(f"--with {shlex.quote(requirement)}" for requirement in requirements)
        flag = "--editable " if is_editable else ""
        return f"uv tool install --force {given} {flag}{_requirement(url, _uv_extras())}"
    if _has(PIPX_RECEIPT):
        return f"pipx inject {DISTRIBUTION} {quoted}"
    return f"{shlex.quote(sys.executable)} -m pip install {quoted}"


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _receipt(name: str) -> Path:
    return Path(sys.prefix) / name


def _has(receipt: str) -> bool:
    return _receipt(receipt).is_file()


def _uv_extras() -> set[str]:
    """Extras that `uv tool install` was given: it makes the environment anew, without those that it is not given."""
    try:
        tool = tomllib.loads(_receipt(UV_RECEIPT).read_text(encoding="utf-8"))["tool"]
        return {
            extra
            for requirement in tool["requirements"]
            if requirement["name"] == DISTRIBUTION
            for extra in requirement.get("extras", ())
        }
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _pipx_extras() -> set[str]:
    """The same of `pipx install`, which keeps the requirement as it was given."""
    try:
        given = json.loads(_receipt(PIPX_RECEIPT).read_text(encoding="utf-8"))["main_package"][
            "package_or_url"
        ]
        found = re.search(r"\[([^\]]*)\]", given)
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return set(filter(None, map(str.strip, found[1].split(",")))) if found else set()


def _requirement(url: str | None, extras: Iterable[str]) -> str:
    """What an installer takes for qv-export with extras: a directory, a file or repository, or a name."""
    suffix = f"[{','.join(sorted(extras))}]" if extras else ""
    if url is None:
        return shlex.quote(f"{DISTRIBUTION}{suffix}")
    if "://" not in url and Path(url).is_dir():
        return shlex.quote(f"{url}{suffix}")
    target = url if "://" in url else Path(url).as_uri()
    return shlex.quote(f"{DISTRIBUTION}{suffix} @ {target}")


def _origin() -> tuple[str | None, bool]:
    """Where it was installed from, a path or a URL, None for an index; and whether it is an editable install."""
    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:  # the source itself on the path, in a container or a model repository
        return str(Path(__file__).resolve().parents[1]), False
    if not text:
        return None, False
    content = json.loads(text)
    url = str(content["url"])
    is_editable = bool(content.get("dir_info", {}).get("editable"))
    if "vcs_info" in content:
        return f"{content['vcs_info']['vcs']}+{url}", is_editable
    parsed = urlparse(url)
    return (unquote(parsed.path) if parsed.scheme == "file" else url), is_editable
