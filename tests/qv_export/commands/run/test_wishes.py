"""Each wish of `run`, through the command line, on a bundle of random weights and on the trained one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.tiny.tasks import make_sample
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from export.processor.text.located import located_in_text
from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle

ROOT = Path(__file__).resolve().parents[4]
STREET = ROOT / "examples" / "pictures" / "street.png"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return shared_bundle(tmp_path_factory, {"dtype": "float32"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", output, weights="link")
    return output


def ask(capsys, bundle, *arguments, expected=0):
    assert run_command_line(["run", str(bundle), *map(str, arguments), "--json"]) == expected
    return json.loads(capsys.readouterr().out)


def test_a_file_holds_several_turns_with_paths_beside_it(bundle, tmp_path, capsys):
    shutil.copy(STREET, tmp_path / "a.png")
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A street."},
        {"role": "user", "content": "And?"},
    ]
    path = tmp_path / "turns.json"
    path.write_text(json.dumps(turns))
    said = ask(capsys, bundle, "--messages", path, "--max-new-tokens", 1)
    turns[0]["content"][0]["image"] = tmp_path / "a.png"
    inputs = open_bundle(bundle).processor.inputs_from_messages(turns)
    assert said["num_prompt_tokens"] == len(inputs.token_ids)
    assert said["num_visual_tokens"] > 0


def test_a_stop_string_ends_the_answer_before_it(trained, capsys):
    gate = ROOT / "examples" / "pictures" / "gate.png"
    question = ("--image", gate, "--prompt", "What does the text say?")
    assert ask(capsys, trained, *question)["text"] == "GATE7"
    cut = ask(capsys, trained, *question, "--stop", "TE", "--stop", "never")
    assert cut["text"] == "GA"
    assert cut["finish_reason"] == "stop"


def test_logprobs_tell_of_each_token(bundle, capsys):
    said = ask(capsys, bundle, "--prompt", "a", "--max-new-tokens", 3, "--logprobs", 2)
    assert [entry["token_id"] for entry in said["logprobs"]] == said["token_ids"]
    for entry in said["logprobs"]:
        assert entry["top"][0]["token_id"] == entry["token_id"], "greedy"
        assert entry["logprob"] == entry["top"][0]["logprob"] <= 0
        assert len(entry["top"]) == 2


def test_a_bias_and_penalties_change_what_is_chosen(bundle, capsys):
    plain = ask(capsys, bundle, "--prompt", "a", "--max-new-tokens", 4)["token_ids"]
    banned = ask(capsys, bundle, "--prompt", "a", "--max-new-tokens", 1, "--logit-bias", f"{plain[0]}=-100")
    assert banned["token_ids"][0] != plain[0]
    once = ask(capsys, bundle, "--prompt", "a", "--max-new-tokens", 12, "--no-repeat-ngram-size", 1)
    assert len(set(once["token_ids"])) == len(once["token_ids"])


def test_what_an_answer_locates_is_told_in_pixels_and_drawn(trained, tmp_path, capsys):
    sample = next(s for s in (make_sample("box", (3, n)) for n in range(20)) if len(s.media) == 1)
    picture = tmp_path / "shapes.png"
    frame = sample.media[0].frames[0]
    Image.fromarray(frame).save(picture)
    drawn = tmp_path / "drawn.png"
    said = ask(capsys, trained, "--image", picture, "--prompt", sample.prompt, "--draw", drawn)
    assert "<|box_start|>" in said["text"]
    assert "<|im_end|>" not in said["text"]
    [one] = said["located"]
    [expected] = located_in_text(said["text"], [frame.shape[1::-1]])
    assert one["pixels"] == [list(point) for point in expected.pixels or ()]
    assert np.any(np.asarray(Image.open(drawn)) != frame)


def test_special_tokens_are_kept_when_asked(trained, capsys):
    question = ("--image", STREET, "--prompt", "What is in this picture?")
    assert ask(capsys, trained, *question, "--keep-special-tokens")["text"].endswith("<|im_end|>")


def test_pictures_are_numbered_when_asked(bundle, capsys):
    arguments = ("--image", STREET, "--prompt", "a", "--max-new-tokens", 1)
    plain = ask(capsys, bundle, *arguments)["num_prompt_tokens"]
    assert ask(capsys, bundle, *arguments, "--add-vision-id")["num_prompt_tokens"] > plain


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either --prompt TEXT or --messages FILE"),
        (["--prompt", "a", "--messages", "{here}/ok.json"], "either --prompt TEXT or --messages FILE"),
        (["--messages", "{here}/ok.json", "--system", "b"], "leave --image, --video, --system and options"),
        (["--messages", "{here}/no.json"], "must hold a JSON list of messages"),
        (["--prompt", "a", "--template-option", "mood=good"], "no JSON"),
        (["--prompt", "a", "--template-option", "mood=1"], "does not read mood"),
        (["--prompt", "a", "--template-option", "mood"], "expected NAME=JSON"),
        (["--prompt", "a", "--template-option", "a=1", "--template-option", "a=2"], "a is given twice"),
        (["--prompt", "a", "--draw", "{here}/drawn.png"], "one picture, this one has 0"),
        (["--prompt", "a", "--image", "{here}/ok.png", "--draw", "{here}/drawn.txt"], "the ending '.txt'"),
        (["--prompt", "a", "--image", "{here}/ok.png", "--draw", "{here}/no/drawn.png"], "is no folder"),
        (["--prompt", "a", "--logit-bias", "x"], "a token's id and a number"),
        (["--prompt", "a", "--logit-bias", "5=1", "--logit-bias", "5=2"], "a token is named twice"),
        (["--prompt", "a", "--logprobs", "21"], "num_logprobs must be a whole number from 0 to 20"),
        (["--prompt", "a", "--presence-penalty", "3"], "presence_penalty must be a number from -2 to 2"),
        (["--prompt", "a", "--continue"], "last message of the assistant"),
    ],
)
def test_a_wish_that_cannot_be_followed_is_refused_by_name(bundle, tmp_path, capsys, arguments, says):
    (tmp_path / "ok.json").write_text('[{"role": "user", "content": "a"}]')
    (tmp_path / "no.json").write_text("{}")
    Image.new("RGB", (56, 56)).save(tmp_path / "ok.png")
    error = ask(capsys, bundle, *(text.format(here=tmp_path) for text in arguments), expected=2)
    assert says in json.dumps(error)


def test_the_python_api_follows_the_same_wishes(bundle):
    import qv_export

    model = qv_export.load(bundle, max_context=256)
    answer = model.generate("a", max_new_tokens=3, num_logprobs=1, no_repeat_ngram_size=1)
    assert len(answer.logprobs) == len(answer.token_ids) == 3
    stopped = model.generate("a", max_new_tokens=3, stop=[answer.text[:1]])
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    with pytest.raises(qv_export.UserError, match="mood"):
        model.generate("a", mood="good")
