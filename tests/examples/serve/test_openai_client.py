import os
import subprocess
import sys

from examples.demo import demo_questions
from export.exporter import export_checkpoint
from tests.support.serve import ROOT, running_serve


def test_the_example_prints_the_answer(tmp_path):
    question = next(question for question in demo_questions() if len(question.images) == 1)
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", tmp_path / "bundle")
    with running_serve(tmp_path / "bundle", "--threads", 1) as server:
        done = subprocess.run(
            [sys.executable, ROOT / "examples/serve/openai_client.py", question.images[0], question.prompt],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "BASE_URL": f"{server.url}/v1"},
        )
    assert done.stdout.strip() == question.answer, done.stderr
