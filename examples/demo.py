"""Asks the small trained checkpoint the demo's questions, and checks its answers.

    python examples/demo.py BUNDLE

Asks each question of `demo_questions.json` by the command that a user would type. Exits with 1 on a wrong answer.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """One question about pictures or a video, and the right answer, which the shipped checkpoint gives."""

    prompt: str
    answer: str
    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()

    def arguments(self) -> list[str]:
        """What follows `qv-export run BUNDLE`."""
        media = [("--image", path) for path in self.images] + [("--video", path) for path in self.videos]
        return [*(word for option, path in media for word in (option, str(path))), "--prompt", self.prompt]

    def content(self) -> list[dict[str, str]]:
        """A user message's content in the chat format of Hugging Face."""
        media = [{"type": "image", "image": str(path)} for path in self.images]
        media += [{"type": "video", "video": str(path)} for path in self.videos]
        return [*media, {"type": "text", "text": self.prompt}]


def demo_questions() -> list[Question]:
    """The questions of `demo_questions.json`; paths there are relative to it."""
    entries = json.loads((EXAMPLES / "demo_questions.json").read_text(encoding="utf-8"))
    return [
        Question(
            prompt=entry["prompt"],
            answer=entry["answer"],
            images=tuple(EXAMPLES / name for name in entry.get("images", ())),
            videos=tuple(EXAMPLES / name for name in entry.get("videos", ())),
        )
        for entry in entries
    ]


def main() -> None:
    bundle = sys.argv[1]
    program = str(Path(sys.executable).with_name("qv-export"))
    num_wrong = 0
    for question in demo_questions():
        arguments = [word.removeprefix(f"{Path.cwd()}/") for word in question.arguments()]
        print("$", shlex.join(["qv-export", "run", bundle, *arguments]), flush=True)
        command = [program, "run", bundle, *arguments]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        is_right = said == question.answer
        print(said if is_right else f"{said}   (wrong: the right answer is {question.answer})", flush=True)
        num_wrong += not is_right
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
