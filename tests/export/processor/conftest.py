"""What the processor's tests share: one generated checkpoint."""

import pytest

from tests.support.chats import checkpoint


@pytest.fixture(scope="session")
def checkpoint_directory(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))
