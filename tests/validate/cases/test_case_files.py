import json

import numpy as np
import pytest

from export.errors import UserError
from export.processor.processor import Processor
from export.processor.text.picture_folder import DEFAULT_PROMPT
from tests.support.pictures import picture
from validate.cases.case_files import load_cases


@pytest.fixture(scope="module")
def processor(exported):
    return Processor.from_directory(exported.bundle)


@pytest.fixture
def folder(tmp_path):
    """Two pictures, one of them with a prompt, and a file that is neither."""
    for name, size in (("cat", (64, 48)), ("dog!", (90, 60))):
        picture(*size).save(tmp_path / f"{name}.png")
    (tmp_path / "cat.txt").write_text("Is this a cat?\n")
    (tmp_path / "notes.md").touch()
    return tmp_path


def test_a_folder_gives_a_case_for_each_picture_with_its_prompt(folder, processor):
    cases = load_cases(folder, processor)
    assert [case.name for case in cases] == ["my_cat", "my_dog"]
    for case, text in zip(cases, ("Is this a cat?", DEFAULT_PROMPT), strict=True):
        [prompt] = case.prompts
        assert len(prompt.grids) == 1
        assert text in processor.tokenizer.decode(prompt.token_ids.tolist())


def test_a_file_gives_conversations_with_paths_beside_it(folder, processor):
    parts = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What?"}]
    path = folder / "cases.json"
    path.write_text(json.dumps([{"name": "a cat / mine", "messages": [{"role": "user", "content": parts}]}]))
    [case] = load_cases(path, processor)
    assert case.name == "my_a_cat_mine"
    assert np.array_equal(case.prompts[0].patches, load_cases(folder, processor)[0].prompts[0].patches)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "must hold a JSON list"),
        ("[1]", "case 0: must be an object"),
        ('[{"name": "x"}]', "case 0: must be an object"),
        ('[{"name": "x", "messages": [], "seed": 1}]', "and nothing else"),
        ("[", "cannot be read as JSON"),
        (
            '[{"name": "x", "messages": [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]}]',
            "my_x",
        ),
        ("[]", "holds no pictures"),
    ],
)
def test_a_bad_file_is_refused_with_a_reason(tmp_path, processor, content, words):
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_cases(path, processor)


def test_two_cases_of_one_name_are_refused(folder, processor):
    picture(64, 48).save(folder / "cat.webp")
    with pytest.raises(UserError, match="my_cat more than once"):
        load_cases(folder, processor)


def test_a_folder_takes_what_a_folder_of_frames_takes(tmp_path, processor):
    picture(64, 48).save(tmp_path / "scan.jfif", "JPEG")
    assert [case.name for case in load_cases(tmp_path, processor)] == ["my_scan"]
