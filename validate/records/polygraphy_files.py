"""Files with which NVIDIA's own tool checks an engine against the reference, on a machine that has nothing of ours.

`polygraphy run` compares an engine's outputs with recorded ones. These are the recorded ones for the vision encoder:
a case's packed pictures, and what the reference makes of them. The decoder's cache has the engine's own size, and so
has no file of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.inputs import ModelInputs
from export.install import require_extra
from validate.cases.prompts import pack_patches
from validate.records.records import ExpectedPrompt

INPUTS_NAME, OUTPUTS_NAME = "vision_inputs.json", "vision_outputs.json"
REFERENCE = "qv-export reference"


def require_polygraphy() -> None:
    """Before anything takes long.

    Raises:
        UserError: Polygraphy is not installed.
    """
    require_extra("polygraphy", "--polygraphy")


def write_polygraphy_files(
    directory: Path, prompts: Sequence[ModelInputs], expected: Sequence[ExpectedPrompt]
) -> None:
    """Write a case as Polygraphy's `--load-inputs` and `--load-outputs` read it.

    Args:
        directory: made if missing.
        prompts: of one case; their pictures are packed in one call.
        expected: the reference's answers to them.

    Raises:
        UserError: Polygraphy is not installed.
    """
    require_polygraphy()
    from polygraphy.comparator import IterationResult, RunResults  # noqa: PLC0415 - optional
    from polygraphy.json import save_json  # noqa: PLC0415

    feeds = vars(pack_patches(prompts))
    visual_embeds = np.concatenate([one.answer.visual_embeds for one in expected])
    results, answer = RunResults(), IterationResult({"visual_embeds": visual_embeds}, runner_name=REFERENCE)
    results.add([answer], runner_name=REFERENCE)
    directory.mkdir(parents=True, exist_ok=True)
    save_json([feeds], str(directory / INPUTS_NAME))
    save_json(results, str(directory / OUTPUTS_NAME))
