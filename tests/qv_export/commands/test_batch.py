"""A corpus through one engine: every row is answered once, whatever breaks."""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain

import psutil
import pytest

from engines.batch.parts import Parts
from engines.batch.rows import Broken, Row, rows_of_requests, shard_of
from export.errors import UserError
from export.exporter import export_checkpoint
from tests.support.serve import ROOT

STREET = ROOT / "examples" / "pictures" / "street.png"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("batch") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures, of which two are broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        shutil.copy(STREET, folder / f"{number:02}.png")
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "07.png").write_bytes(STREET.read_bytes()[:500])
    return folder


def command(*arguments):
    return [
        sys.executable,
        "-m",
        "qv_export",
        "batch",
        *map(str, arguments),
        "--threads",
        "1",
        "--max-context",
        "512",
    ]


def batch(*arguments):
    return subprocess.run(
        command(*arguments), check=False, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def rows_in(output):
    lines = [line for part in sorted(output.glob("*.jsonl")) for line in part.read_text().splitlines()]
    return {row["custom_id"]: row for row in map(json.loads, lines)} if lines else {}, len(lines)


def answers_in(output):
    rows, _ = rows_in(output)
    return {
        name: row["response"]["body"]["choices"][0]["message"]["content"] if row["error"] is None else "error"
        for name, row in rows.items()
    }


def test_a_broken_picture_is_a_row_with_an_error_and_a_killed_run_is_gone_on_with(bundle, pictures, tmp_path):
    asked = ("--input", f"{pictures}/*.png", "--prompt", "What is in this picture?")
    whole = batch(bundle, *asked, "-o", tmp_path / "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    result = json.loads(whole.stdout)
    assert (result["rows"], result["errors"]) == (12, 2)
    expected = answers_in(tmp_path / "whole")
    assert sorted(name for name, answer in expected.items() if answer == "error") == [
        str(pictures / "03.png"),
        str(pictures / "07.png"),
    ]
    output = tmp_path / "killed"
    process = subprocess.Popen(
        command(bundle, *asked, "-o", output, "--slots", "1"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not any(path.stat().st_size for path in output.glob("*.unfinished")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = batch(bundle, *asked, "-o", output)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert batch(bundle, *asked, "-o", output, "--resume").returncode == 0
    rows, num_lines = rows_in(output)
    assert answers_in(output) == expected
    assert num_lines == len(rows) == 12


def test_workers_answer_as_one_process_does_and_tell_what_is_left(bundle, pictures, tmp_path):
    asked = ("--input", f"{pictures}/*.png", "--prompt", "What is in this picture?")
    told = {}
    for workers in (1, 2):
        done = batch(bundle, *asked, "-o", tmp_path / str(workers), "--workers", workers, "--slots", 2)
        assert done.returncode == 0, done.stderr
        told[workers] = done.stderr
    assert answers_in(tmp_path / "2") == answers_in(tmp_path / "1")
    for text in told.values():
        assert "of 12 rows" in text
        assert " left" in text
        assert "12 rows, 2 with an error; " in text.splitlines()[-1]
        assert "pictures/s" in text.splitlines()[-1]
        assert "the engine waited" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_the_run_however_it_ends(bundle, tmp_path, number, status):
    body = {"messages": [{"role": "user", "content": "Say"}], "max_tokens": 300, "ignore_eos": True}
    lines = [json.dumps({"custom_id": str(i), "body": body}) for i in range(40)]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    asked = ("--requests", tmp_path / "requests.jsonl", "-o", tmp_path / "out", "--workers", 2, "--slots", 1)
    process = subprocess.Popen(command(bundle, *asked), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list((tmp_path / "out").glob("*.unfinished")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        below = psutil.Process(process.pid).children(recursive=True)
        assert sum("engines.batch.child" in " ".join(child.cmdline()) for child in below) == 2
        process.send_signal(number)
        assert process.wait(60) == status
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_a_prompt_before_the_picture_is_computed_once(bundle, pictures, tmp_path):
    asked = ("--input", f"{pictures}/*.png", "--prompt", "What is in this picture? " * 8, "--slots", 1)
    cached = {}
    for name, options in (("after", ()), ("before", ("--prompt-first",))):
        assert batch(bundle, *asked, *options, "-o", tmp_path / name).returncode == 0
        rows, _ = rows_in(tmp_path / name)
        usages = [row["response"]["body"].get("usage") for row in rows.values()]
        cached[name] = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages if usage)
    # Ten pictures, of which nine find the prompt there; with the pictures first, being one and the same, all of it is.
    assert cached["before"] > 9 * 40


def test_requests_in_openais_form_are_answered_in_it_and_shards_share_them(bundle, tmp_path):
    def line(number, **fields):
        body = {
            "model": "any",
            "messages": [{"role": "user", "content": f"Say {number}"}],
            "max_tokens": 3,
            **fields,
        }
        return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

    lines = [
        *(json.dumps(line(number)) for number in range(4)),
        "{",
        json.dumps(line(4, wish=1)),
        '{"custom_id": 7}',
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    for shard in ("0/2", "1/2"):
        done = batch(
            bundle, "--requests", tmp_path / "requests.jsonl", "-o", tmp_path / "out", "--shard", shard
        )
        assert done.returncode == 0, done.stderr
    rows, num_lines = rows_in(tmp_path / "out")
    assert num_lines == len(rows) == 7
    assert {name for name, row in rows.items() if row["error"]} == {"line-5", "r4", "line-7"}
    assert rows["r4"]["response"]["status_code"] == 400
    assert "wish" in rows["r4"]["error"]["message"]
    assert rows["r0"]["response"]["body"]["object"] == "chat.completion"


def test_a_line_cut_by_a_kill_is_asked_again_and_whole_lines_are_kept(tmp_path):
    (tmp_path / "part-00000-00000.jsonl.unfinished").write_text('{"custom_id": "a"}\n{"custom_id": "b')
    (tmp_path / "part-00000-00001.jsonl.unfinished").write_text("{")
    parts = Parts(tmp_path, 0, resume=True)
    assert parts.done() == {"a"}
    parts.write({"custom_id": "b"})
    parts.close()
    assert Parts(tmp_path, 0, resume=True).done() == {"a", "b"}
    assert Parts(tmp_path, 1, resume=False).done() == set()
    with pytest.raises(UserError, match="--resume"):
        Parts(tmp_path, 0, resume=False)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_full_disk_is_told_with_the_way_on_and_keeps_what_was_written(tmp_path):
    def row(number):
        return {"custom_id": f"r{number}", "text": "x" * 100}

    parts = Parts(tmp_path / "out", 0, resume=False)
    parts.write(row(0))
    parts.close()
    full = tmp_path / "out" / "part-00000-00001.jsonl.unfinished"
    full.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"part-00000-00001.*No space left on device") as caught:
        parts.write(row(1))
    assert "--resume" in str(caught.value.remedy)
    with pytest.raises(UserError, match="No space left"):
        parts.close()
    parts.close()  # nothing is left to be written
    full.unlink()
    again = Parts(tmp_path / "out", 0, resume=True)
    assert again.done() == {"r0"}
    again.write(row(1))
    again.close()
    assert Parts(tmp_path / "out", 0, resume=True).done() == {"r0", "r1"}


def test_shards_have_every_row_once():
    rows = [Row(str(number), Broken("")) for number in range(11)]
    shards = [[row.id for row in shard_of(rows, shard, 3)] for shard in range(3)]
    assert sorted(chain.from_iterable(shards), key=int) == [row.id for row in rows]


def test_a_file_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        rows_of_requests(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "Give --requests"),
        (["--input", "/nowhere/*.png"], "Give --requests"),
        (["--input", "/nowhere/*.png", "--prompt", "x"], "No file is named"),
        (["--input", "x", "--prompt", "x", "--shard", "2/2"], "--shard"),
        (["--input", "x", "--prompt", "x", "--shard", "one"], "--shard"),
        (["--requests", __file__, "--prompt-first"], "--requests holds whole requests"),
        (["--input", __file__, "--prompt", "x", "--target", "onnxruntime", "--engine", "a"], "not both"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(bundle, tmp_path, options, text):
    done = batch(bundle, *options, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert text in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"type": "object", "type": "array"}'])
def test_a_schema_that_is_no_json_is_a_mistake_however_it_is_broken(bundle, tmp_path, content):
    schema = tmp_path / "schema.json"
    schema.write_text(content)
    done = batch(bundle, "--input", "x", "--prompt", "x", "--json-schema", schema, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "schema.json cannot be read as JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
