"""Cuts wheels into pieces that a narrow way takes, and joins them on the other side.

python -m benchmarks.gpu_proof.pieces split WHEELS PIECES
python -m benchmarks.gpu_proof.pieces join PIECES WHEELS

No package of ours or of others is needed on either side.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

MOST_BYTES = 60_000_000
INDEX = "pieces.json"


def split(source: Path, target: Path, most_bytes: int = MOST_BYTES) -> list[tuple[str, int]]:
    """Write every file of a folder as pieces, with an index of what they are pieces of.

    Returns:
        Name and bytes of each piece.
    """
    target.mkdir(parents=True, exist_ok=True)
    index: dict[str, object] = {}
    written = []
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        names: list[str] = []
        whole = hashlib.sha256()
        with path.open("rb") as file:
            while (content := file.read(most_bytes)) or not names:
                names.append(f"{path.name}.{len(names):02}")
                (target / names[-1]).write_bytes(content)
                whole.update(content)
                written.append((names[-1], len(content)))
        index[path.name] = {"pieces": names, "sha256": whole.hexdigest()}
    (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return written


def join(source: Path, target: Path) -> list[str]:
    """Put the files together again; gives a sentence for each that lacks a piece or is not what it was."""
    target.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, known in json.loads((source / INDEX).read_text(encoding="utf-8")).items():
        missing = [piece for piece in known["pieces"] if not (source / piece).is_file()]
        if missing:
            problems.append(f"{name} lacks {', '.join(missing)}: carry them over too")
            continue
        whole, half = hashlib.sha256(), target / f".{name}"
        with half.open("wb") as file:
            for piece in known["pieces"]:
                content = (source / piece).read_bytes()
                whole.update(content)
                file.write(content)
        if whole.hexdigest() != known["sha256"]:
            half.unlink()
            problems.append(f"{name} is not what was cut: carry its pieces over again")
            continue
        half.replace(target / name)
    return problems


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["split", "join"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    if options.what == "split":
        for name, num_bytes in split(options.source, options.target):
            print(f"{num_bytes / 1e6:8.1f} MB  {name}")
        return 0
    problems = join(options.source, options.target)
    print("\n".join(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
