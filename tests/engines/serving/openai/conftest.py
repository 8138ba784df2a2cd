"""One server for all tests of its API."""

import pytest

from export.exporter import export_checkpoint
from tests.engines.serving.openai.served import MODEL
from tests.support.serve import ROOT, running_serve


@pytest.fixture(scope="package")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "bundle"
    export_checkpoint(ROOT / "models" / MODEL, directory)
    return directory


@pytest.fixture(scope="package")
def server(bundle):
    with running_serve(bundle, "--threads", 1, "--max-context", 512, "--model-name", MODEL) as running:
        yield running


@pytest.fixture(scope="package")
def client(server):
    return server.client()
