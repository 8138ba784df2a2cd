"""From a checkpoint on disk to words on stdout, through the command line alone."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from qv_export.cli import run_command_line
from tests.support.pictures import encoded, moving_frames, picture, video_file

ROOT = Path(__file__).resolve().parents[2]
STREET = ROOT / "examples" / "pictures" / "street.png"
CHART = ROOT / "examples" / "pictures" / "chart.png"
QUESTION = ["--prompt", "What is in this picture?", "--max-new-tokens", "12"]

Outcome = tuple[int, str, str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", dtype="float32", shards=2)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "tiny"
    assert run_command_line(["-q", "export", str(checkpoint), "-o", str(output)]) == 0
    return output


@pytest.fixture
def qv_export(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process; returns exit code, stdout, stderr."""

    def call(*arguments: object) -> Outcome:
        code = run_command_line([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def ask(bundle: Path, qv_export: Callable[..., Outcome]) -> Callable[..., dict[str, Any]]:
    """Run a question with --json and return the object."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = qv_export("run", bundle, *arguments, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    return call


# The main job


def test_a_picture_and_a_question_become_words(ask: Callable[..., dict[str, Any]]) -> None:
    answer = ask("--image", STREET, *QUESTION)
    # 480 x 320 becomes 476 x 308 or thereabouts: 17 x 11 merged tokens of 28 x 28 pixels.
    assert answer["num_visual_tokens"] == 17 * 11
    assert answer["num_prompt_tokens"] > 17 * 11
    assert answer["num_new_tokens"] == len(answer["token_ids"]) <= 12
    assert answer["finish_reason"] in {"stop", "length"}
    assert set(answer["timings_ms"]) == {"open", "process", "load", "vision", "prefill", "decode"}
    assert answer["timings_ms"]["vision"] > 0
    assert set(answer["versions"]) == {"qv-export", "onnxruntime", "numpy"}


def test_json_says_which_seconds_of_a_video_were_seen_and_what_was_lost(
    tmp_path: Path, bundle: Path, ask: Callable[..., dict[str, Any]], qv_export: Callable[..., Outcome]
) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(video_file(moving_frames(30)))
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(picture(90, 60), "JPEG")[:-2])
    media = ["--video", video, "--image", photo]
    answer = ask(*media, *QUESTION)
    assert answer["media"][0] == {"kind": "video", "seconds": [0, 0.5, 1, 1.5, 2, 2.5], "notes": []}
    assert answer["media"][1]["notes"] == [f"{photo}: its end is missing."]
    code, _, err = qv_export("run", bundle, *media, *QUESTION)
    assert code == 0
    assert "its end is missing" in " ".join(err.split())
    code, _, err = qv_export("run", bundle, *media, *QUESTION, "--strict-media")
    assert code == 2
    assert "truncated or corrupt" in err


def test_streamed_text_is_the_text_of_json(
    bundle: Path, ask: Callable[..., dict[str, Any]], qv_export: Callable[..., Outcome]
) -> None:
    code, out, err = qv_export("run", bundle, "--image", STREET, *QUESTION)
    assert (code, out) == (0, ask("--image", STREET, *QUESTION)["text"] + "\n")
    assert "prompt tokens" in err


def test_another_picture_gets_another_answer(ask: Callable[..., dict[str, Any]]) -> None:
    greedy = ["--temperature", "0"]
    street, chart = (ask("--image", picture, *QUESTION, *greedy)["token_ids"] for picture in (STREET, CHART))
    assert street != chart


def test_the_prompt_in_chunks_gets_the_same_answer(ask: Callable[..., dict[str, Any]]) -> None:
    whole, chunked = (
        ask("--image", STREET, *QUESTION),
        ask("--image", STREET, *QUESTION, "--prefill-chunk", "50"),
    )
    assert chunked["token_ids"] == whole["token_ids"]


def test_a_larger_context_changes_nothing(ask: Callable[..., dict[str, Any]]) -> None:
    needed, larger = ask(*QUESTION), ask(*QUESTION, "--max-context", "700")
    assert larger["token_ids"] == needed["token_ids"]
    assert larger["capacity_tokens"] == 700


def test_a_seed_repeats_a_sampled_answer(ask: Callable[..., dict[str, Any]]) -> None:
    sampled = [
        "--prompt",
        "Tell me",
        "--max-new-tokens",
        "16",
        "--temperature",
        "2",
        "--top-k",
        "0",
        "--top-p",
        "1",
    ]
    first, again, other = (ask(*sampled, "--seed", seed)["token_ids"] for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_seed_that_was_drawn_is_told(ask: Callable[..., dict[str, Any]]) -> None:
    sampled = [
        "--prompt",
        "Tell me",
        "--max-new-tokens",
        "16",
        "--temperature",
        "2",
        "--top-k",
        "0",
        "--top-p",
        "1",
    ]
    drawn = ask(*sampled)
    assert ask(*sampled, "--seed", drawn["seed"])["token_ids"] == drawn["token_ids"]


def test_pictures_and_videos_mix(tmp_path: Path, ask: Callable[..., dict[str, Any]]) -> None:
    frames = [Image.new("RGB", (112, 84), (60 * step, 90, 30)) for step in range(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=500)
    one = ask("--image", CHART, *QUESTION)
    both = ask("--image", CHART, "--video", tmp_path / "clip.gif", *QUESTION)
    assert both["num_visual_tokens"] > one["num_visual_tokens"]


def test_a_linked_bundle_answers_as_a_copied_one_and_has_its_key(
    checkpoint: Path, bundle: Path, ask: Callable[..., dict[str, Any]], qv_export: Callable[..., Outcome]
) -> None:
    linked = checkpoint.parent / "linked"
    code, out, err = qv_export("export", checkpoint, "-o", linked, "--weights", "link", "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["manifest"]["weights_mode"] == "link"
    assert content["manifest"]["key"] == open_bundle(linked).manifest.key == open_bundle(bundle).manifest.key
    shard = open_bundle(linked).manifest.weights[0].name
    assert (linked / shard).stat().st_ino == (checkpoint / shard).stat().st_ino
    code, out, err = qv_export("run", linked, "--image", STREET, *QUESTION, "--json")
    assert json.loads(out)["token_ids"] == ask("--image", STREET, *QUESTION)["token_ids"]


def test_a_bundle_is_inspected_with_the_contracts_names(
    bundle: Path, qv_export: Callable[..., Outcome]
) -> None:
    code, out, _ = qv_export("inspect", bundle, "--json")
    vision, decoder = json.loads(out)["graphs"]
    assert code == 0
    assert [tensor["name"] for tensor in vision["inputs"]] == [
        "patches",
        "positions",
        "cu_seqlens",
        "segment_range",
    ]
    assert {"QvRotary", "QvPatchAttention"} <= {name.partition("::")[2] for name in vision["operators"]}
    assert {"QvRotary", "QvCachedAttention"} <= {name.partition("::")[2] for name in decoder["operators"]}
    assert all(tensor["doc"] for graph in (vision, decoder) for tensor in graph["inputs"])


# Mistakes


def corrupt_picture(directory: Path) -> list[object]:
    (directory / "torn.png").write_bytes(STREET.read_bytes()[:2000])
    return ["--image", directory / "torn.png"]


def song(directory: Path) -> list[object]:
    (directory / "song.png").write_bytes(b"ID3 la la la")
    return ["--image", directory / "song.png"]


def empty_video(directory: Path) -> list[object]:
    (directory / "empty.mp4").touch()
    return ["--video", directory / "empty.mp4"]


def empty_folder(directory: Path) -> list[object]:
    (directory / "frames").mkdir()
    return ["--video", directory / "frames"]


def long_prompt(directory: Path) -> list[object]:
    return ["--image", STREET, "--max-context", "100"]


def hot_temperature(directory: Path) -> list[object]:
    return ["--temperature", "-1"]


@pytest.mark.parametrize(
    "mistake",
    [
        corrupt_picture,
        song,
        empty_video,
        empty_folder,
        long_prompt,
        hot_temperature,
    ],
)
def test_a_mistake_in_the_question_is_one_message(
    tmp_path: Path,
    bundle: Path,
    qv_export: Callable[..., Outcome],
    mistake: Callable[[Path], Sequence[object]],
) -> None:
    code, out, err = qv_export("-q", "run", bundle, *QUESTION, *mistake(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


def lose_a_shard(checkpoint: Path) -> str:
    shard = min(checkpoint.glob("*.safetensors"))
    shard.unlink()
    return shard.name


def truncate_a_shard(checkpoint: Path) -> str:
    shard = min(checkpoint.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    return shard.name


def change_the_architecture(checkpoint: Path) -> str:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    return "llama"


def ask_for_more_layers(checkpoint: Path) -> str:
    config = json.loads((checkpoint / "config.json").read_text())
    layers = config["num_hidden_layers"]
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers + 1}))
    return f"layers.{layers}.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "damage",
    [lose_a_shard, truncate_a_shard, change_the_architecture, ask_for_more_layers],
)
def test_a_damaged_checkpoint_is_one_message_and_leaves_nothing(
    tmp_path: Path, qv_export: Callable[..., Outcome], damage: Callable[[Path], str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", dtype="float32", shards=2)
    culprit = damage(checkpoint)
    code, out, err = qv_export("-q", "export", checkpoint, "-o", tmp_path / "out" / "bundle")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert culprit in err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_foreign_directory_is_not_replaced(
    tmp_path: Path, checkpoint: Path, qv_export: Callable[..., Outcome]
) -> None:
    (tmp_path / "thesis.tex").touch()
    code, _, err = qv_export("-q", "export", checkpoint, "-o", tmp_path)
    assert code == 2
    assert "is not a bundle" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# Weights are placed, graphs are not: the export stays there until it is killed.
STUCK_EXPORT = """
import time
from export import exporter
from qv_export.cli import main
exporter._write_files = lambda *arguments: time.sleep(600)
main()
"""


def test_a_killed_export_leaves_the_last_good_bundle(
    tmp_path: Path, checkpoint: Path, bundle: Path, qv_export: Callable[..., Outcome]
) -> None:
    output = shutil.copytree(bundle, tmp_path / "bundle")
    created = open_bundle(output).manifest.created
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_EXPORT, "export", checkpoint, "-o", output],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "writing the bundle\n" in iter(process.stderr.readline, "")
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert open_bundle(output).manifest.created == created
    assert qv_export("run", output, *QUESTION)[0] == 0
