import pytest

from export.exporter import export_checkpoint
from tests.support.serve import ROOT


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("batch") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return directory
