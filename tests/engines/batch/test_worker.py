"""The worker that is sent to other processes and clusters: opened where it is asked, columns in and columns out."""

import json
import pickle

import pytest

from engines.batch.worker import BatchWorker, ModelChoice
from export.errors import UserError
from tests.support.serve import ROOT

GATE = ROOT / "examples" / "pictures" / "gate.png"


def test_it_is_pickled_unopened_and_answers_columns(bundle):
    choice = ModelChoice(bundle, num_slots=2, max_context=512, num_threads=1)
    worker = pickle.loads(
        pickle.dumps(BatchWorker(choice, "What does the text say?", {"max_completion_tokens": 8}))
    )
    try:
        answers = worker({"path": ["gate", "broken"], "bytes": [GATE.read_bytes(), b"no picture"]})
        assert answers["id"] == ["gate", "broken"]
        assert answers["answer"] == ["GATE7", None]
        assert answers["error"][0] is None
        assert "picture" in answers["error"][1]
        assert answers["new_tokens"][0] == 6
        again = pickle.loads(pickle.dumps(worker))  # what is open stays where it is
        assert again._open is None
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 2}
        assert worker({"id": [7], "request": [json.dumps(body)]})["id"] == ["7"]
    finally:
        worker.close()


def test_files_without_a_prompt_are_a_mistake(bundle):
    with pytest.raises(UserError, match="needs a prompt"):
        BatchWorker(bundle)({"path": ["a"], "bytes": [b""]})
