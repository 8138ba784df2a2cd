"""The command that adds an optional part to this very installation of qv-export.

qv-export is installed from a clone, a wheel or an index, by pip, pipx or `uv tool`; a command for another one of them
would install into another environment, or fail. How it was installed is written in its own metadata
(`direct_url.json`, PEP 610) and in the tool's receipt beside the environment.
"""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

DISTRIBUTION = "qv-export"


def install_command(extra: str) -> str:
    """The command line that installs an extra of qv-export where this process runs.

    Args:
        extra: a name of `[project.optional-dependencies]`, such as "rtx".
    """
    url, is_editable = _origin()
    if _has("uv-receipt.toml"):
        return f"uv tool install --force {_requirement(url, extra)}"
    if _has("pipx_metadata.json"):
        return f"pipx install --force {_requirement(url, extra)}"
    editable = "--editable " if is_editable else ""
    return f"{shlex.quote(sys.executable)} -m pip install {editable}{_requirement(url, extra)}"


def package_command(*requirements: str) -> str:
    """The command line that installs other packages where this process runs."""
    quoted = " ".join(map(shlex.quote, requirements))
    if _has("uv-receipt.toml"):
        url, _ = _origin()
        given = " ".join(f"--with {shlex.quote(requirement)}" for requirement in requirements)
        return f"uv tool install --force {given} {shlex.quote(url or DISTRIBUTION)}"
    if _has("pipx_metadata.json"):
        return f"pipx inject {DISTRIBUTION} {quoted}"
    return f"{shlex.quote(sys.executable)} -m pip install {quoted}"


def _has(receipt: str) -> bool:
    return (Path(sys.prefix) / receipt).is_file()


def _requirement(url: str | None, extra: str) -> str:
    """What an installer takes for qv-export with an extra: a directory, a file or repository, or a name."""
    if url is None:
        return shlex.quote(f"{DISTRIBUTION}[{extra}]")
    if "://" not in url and Path(url).is_dir():
        return shlex.quote(f"{url}[{extra}]")
    target = url if "://" in url else Path(url).as_uri()
    return shlex.quote(f"{DISTRIBUTION}[{extra}] @ {target}")


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
