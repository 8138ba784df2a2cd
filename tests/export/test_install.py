import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import install
from export.errors import UserError
from export.install import install_command, missing_module_error, package_command, require_extra

UV = """[tool]
requirements = [{{ name = "qv-export", extras = {extras}, directory = "/clone" }}, {{ name = "triton" }}]
"""


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tools put their receipts."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    return tmp_path


def installed_from(monkeypatch: pytest.MonkeyPatch, direct_url: dict[str, Any] | None) -> None:
    text = None if direct_url is None else json.dumps(direct_url)
    found = SimpleNamespace(read_text=lambda _name: text)
    monkeypatch.setattr(install, "distribution", lambda _name: found)


def directory_url(path: Path, *, editable: bool = False) -> dict[str, Any]:
    return {"url": path.as_uri(), "dir_info": {"editable": editable} if editable else {}}


def test_pip_in_a_clone(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, directory_url(prefix, editable=True))
    assert install_command("rtx") == f"/venv/bin/python -m pip install --editable '{prefix}[rtx]'"
    assert package_command("triton>=3") == "/venv/bin/python -m pip install 'triton>=3'"


def test_pip_from_elsewhere(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = "/venv/bin/python -m pip install "
    installed_from(monkeypatch, None)
    assert install_command("all") == f"{pip}'qv-export[all]'"
    installed_from(monkeypatch, {"url": "file:///a%20b/qv_export-1-py3-none-any.whl", "archive_info": {}})
    assert install_command("all") == f"{pip}'qv-export[all] @ file:///a%20b/qv_export-1-py3-none-any.whl'"
    installed_from(monkeypatch, {"url": "https://host/qv", "vcs_info": {"vcs": "git", "commit_id": "0"}})
    assert install_command("all") == f"{pip}'qv-export[all] @ git+https://host/qv'"


def test_a_source_that_was_never_installed_names_itself(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(install, "distribution", missing)
    assert install_command("rtx").endswith(f"{Path(install.__file__).parents[1]}[rtx]'")


@pytest.mark.parametrize(("there", "expected"), [([], "rtx"), (["export", "rtx"], "export,rtx")])
def test_a_uv_tool_keeps_the_extras_that_it_has(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], expected: str
) -> None:
    (prefix / "uv-receipt.toml").write_text(UV.format(extras=json.dumps(there)), encoding="utf-8")
    installed_from(monkeypatch, directory_url(prefix))
    assert install_command("rtx") == f"uv tool install --force '{prefix}[{expected}]'"
    kept = f"'{prefix}[{','.join(there)}]'" if there else str(prefix)
    assert package_command("triton") == f"uv tool install --force --with triton {kept}"


def test_pipx_keeps_the_extras_that_it_has(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"main_package": {"package": "qv-export", "package_or_url": f"{prefix}[export, polygraphy]"}}
    (prefix / "pipx_metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    installed_from(monkeypatch, directory_url(prefix))
    assert install_command("rtx") == f"pipx install --force '{prefix}[export,polygraphy,rtx]'"
    assert package_command("triton") == "pipx inject qv-export triton"


@pytest.mark.parametrize("name", ["uv-receipt.toml", "pipx_metadata.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "tool = 3", '{"main_package": null}'])
def test_a_receipt_that_cannot_be_read_costs_the_extras_alone(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (prefix / name).write_text(text, encoding="utf-8")
    installed_from(monkeypatch, directory_url(prefix))
    assert install_command("rtx").endswith(f"--force '{prefix}[rtx]'")


def test_a_missing_part_is_refused_with_all_that_is_missing(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(monkeypatch, None)
    require_extra("export", "Exporting")
    there = {"safetensors", "onnx_ir"}
    monkeypatch.setattr(install, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(UserError, match=r"^Exporting needs torch and onnxscript, which are not installed"):
        require_extra("export", "Exporting")
    with pytest.raises(UserError, match=r"^It needs torch, which is .*'qv-export\[validate\]'$"):
        require_extra("validate", "It")


def test_a_module_leads_to_the_smallest_extra_that_brings_it(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(monkeypatch, None)
    assert "[validate]" in str(missing_module_error("torch.nn"))
    assert "[export]" in str(missing_module_error("onnx_ir"))
    assert missing_module_error("nonsense") is None
    assert missing_module_error("") is None


def test_every_extra_is_one_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert set(install.EXTRA_MODULES) <= set(extras)
    assert not any("gpu" in name for name in extras)
