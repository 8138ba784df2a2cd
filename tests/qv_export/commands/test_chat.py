"""Several turns in a terminal: the history counts, a mistake ends no talk, Ctrl-C ends an answer alone."""

import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any, cast

import pytest

from engines.runtime.answer import FinishEvent, Timings, TokenEvent
from examples.demo import demo_questions
from export.bundle import open_bundle
from export.errors import UserError
from export.exporter import export_checkpoint
from qv_export.commands.chat import Talk, _ask, _follow
from tests.support.serve import ROOT

QUESTION = next(question for question in demo_questions() if len(question.images) == 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return directory


def command(bundle, *options):
    return [sys.executable, "-m", "qv_export", "chat", str(bundle), "--threads", "1", *options]


def test_a_talk_answers_remembers_and_goes_on_after_a_mistake(bundle):
    lines = [
        "/image /nowhere.png",
        f"/image '{QUESTION.images[0]}'",
        QUESTION.prompt,
        "",
        QUESTION.prompt,
        "/what",
        "/new",
        "Hi",
        "/quit",
        "unheard",
    ]
    done = subprocess.run(
        command(bundle, "--max-new-tokens", "24"),
        input="\n".join(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert answers[0] == QUESTION.answer
    assert len(answers) == 3
    assert "error: /nowhere.png is not there" in done.stderr
    told = [
        (int(prompt), int(reused))
        for prompt, reused in re.findall(r"\[(\d+) prompt tokens, (\d+) of them", done.stderr)
    ]
    assert told[1][1] >= told[0][0] - 8  # the second turn starts behind the first
    assert told[2][0] < told[0][0]  # and a new talk behind nothing


def test_ctrl_c_ends_the_answer_and_not_the_talk(bundle, capsys):
    opened = open_bundle(bundle)

    class Service:
        """Says one token, is interrupted, and ends when it is told to."""

        def submit(self, request, on_event):
            self.on_event = on_event
            on_event(TokenEvent(0, opened.processor.tokenizer.encode("yes").ids[0], None, Timings(9, 0, 1)))
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
            return "ticket"

        def cancel(self, ticket):
            assert ticket == "ticket"
            self.on_event(FinishEvent(0, "cancelled", Timings(9, 0, 1)))

    talk = Talk(opened, cast(Any, Service()), opened.generation_config, None)
    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _ask("Hello", talk)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]
    assert talk.turns[1]["content"] == capsys.readouterr().out.strip() != ""


def test_a_turn_that_fails_is_forgotten_and_its_picture_kept(bundle, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    opened = open_bundle(bundle)
    talk = Talk(opened, cast(Any, None), opened.generation_config, "Be brief.")
    _follow(f"/image {broken}", talk)
    with pytest.raises(UserError):
        _ask("What?", talk)
    assert talk.turns == []
    _follow("/new", talk)
    assert talk.shown == []
