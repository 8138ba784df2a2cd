"""What is wrong with a path that shall be a checkpoint, said before anything of it is read."""

import re
from pathlib import Path

from export.errors import UserError
from export.records.manifest import MANIFEST_NAME
from export.wording import command_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def require_checkpoint(path: Path) -> None:
    """Refuse what is no directory of a checkpoint.

    Raises:
        UserError: nothing there, a model's id on the hub, a file, a bundle, or a directory that holds neither
            `config.json` nor an adapter.
    """
    if not path.exists():
        raise _nothing_there(path)
    if not path.is_dir():
        raise UserError(f"{path} is a file.", "Give the checkpoint's directory, which holds config.json.")
    if (path / MANIFEST_NAME).is_file():
        command = command_line("run", path, "--prompt", "TEXT")
        raise UserError(f"{path} is a bundle already.", f"Export is done; ask it: {command}")
    # An adapter alone is told, with its base, by who looks for weights.
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path} is no checkpoint: config.json not found.",
            "Give a directory as downloaded from the hub: config.json, *.safetensors, tokenizer.json.",
        )


def _nothing_there(path: Path) -> UserError:
    found = f"{path} does not exist."
    if _HUB_ID.fullmatch(str(path)):
        return UserError(
            f"{found} It looks like a model's id on the Hugging Face hub; qv-export downloads nothing.",
            f"Download it first: hf download {path} --local-dir {path.name}",
        )
    return UserError(found, "Give the checkpoint's directory.")
