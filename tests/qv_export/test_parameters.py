import click
import pytest

from qv_export.parameters import Architecture, CheckpointPath, MediaPath


@pytest.mark.parametrize("value", ["89", "8.9", "sm89", "sm_89", "SM_89", "sm8.9"])
def test_an_architecture_may_be_written_as_people_write_it(value: str) -> None:
    assert Architecture().convert(value, None, None) == 89


@pytest.mark.parametrize(("value", "number"), [("12.0", 120), ("120", 120), ("7.5", 75)])
def test_an_architecture_has_two_or_three_digits(value: str, number: int) -> None:
    assert Architecture().convert(value, None, None) == number


@pytest.mark.parametrize("value", ["", "sm", "8", "8.", "8.95", "-89", "ada", "8.x", "٨٩"])
def test_what_is_no_architecture_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(click.BadParameter, match=r"such as 89 for 8\.9"):
        Architecture().convert(value, None, None)


@pytest.mark.parametrize(
    "value", ["https://host/a.png", "HTTP://host/a.png", f"data:image/png;base64,{'A' * 999}"]
)
def test_a_web_address_is_refused_as_what_it_is(value: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is a web address.*Download it first") as caught:
        MediaPath().convert(value, None, None)
    assert len(caught.value.format_message()) < 200


def test_a_folder_of_frames_is_a_video_and_no_picture(tmp_path) -> None:
    assert MediaPath(folder_okay=True).convert(str(tmp_path), None, None) == tmp_path
    with pytest.raises(click.BadParameter, match="is a directory"):
        MediaPath().convert(str(tmp_path), None, None)


def test_a_hub_id_is_told_from_a_wrong_path(tmp_path) -> None:
    with pytest.raises(click.BadParameter) as caught:
        CheckpointPath().convert("Qwen/Qwen2-VL-2B-Instruct", None, None)
    assert (
        "hf download Qwen/Qwen2-VL-2B-Instruct --local-dir Qwen2-VL-2B-Instruct"
        in caught.value.format_message()
    )
    for path in ("nowhere", "/Qwen/nowhere", "a/b/c", str(tmp_path / "nowhere")):
        with pytest.raises(click.BadParameter) as caught:
            CheckpointPath().convert(path, None, None)
        assert "hf download" not in caught.value.format_message()
        assert "does not exist" in caught.value.format_message()


def test_other_things_than_a_checkpoint_are_named(tmp_path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(click.BadParameter, match="is a bundle already"):
        CheckpointPath().convert(str(tmp_path), None, None)
    with pytest.raises(click.BadParameter, match="is a file"):
        CheckpointPath().convert(str(tmp_path / "manifest.json"), None, None)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(click.BadParameter, match=r"config\.json not found"):
        CheckpointPath().convert(str(tmp_path), None, None)
    (tmp_path / "config.json").touch()
    assert CheckpointPath().convert(str(tmp_path), None, None) == tmp_path
