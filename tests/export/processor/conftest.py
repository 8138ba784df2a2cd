"""What do the processor's tests share? One generated checkpoint."""

import pytest

from tests.support.chats import checkpoint


@pytest.fixture(scope="session")
def checkpoint_directory(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("checkpoint"))
