"""How much structure a command walks through: files, digests and JSON reads on its way; lines; names with two owners.

    python -m benchmarks.structure              of this tree
    python -m benchmarks.structure --tree DIR   of another checkout of the project, beside it in one table

Each command runs in a process of its own, in which opening a file for a digest, parsing JSON and calling a function are
counted. A second digest or read of one file is the cost of a joint without an owner.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engines", "export", "plugins", "qv_export", "validate")
COMMANDS = {
    "run": ["run", "{bundle}", "--prompt", "?", "--max-new-tokens", "1"],
    "build": ["build", "{bundle}", "--target", "onnxruntime", "--max-context", "256"],
    "validate": ["validate", "{bundle}", "--level", "quick", "--report", "{scratch}/report"],
}
CONTRACTS = ("plugins", "engines/backends")
"""Folders with one folder an op or a target, whose files of one name are alike by contract."""
_COUNTING = """
import hashlib, json, sys
from collections import Counter

counts, files = Counter(), set()
tree, packages, *arguments = sys.argv[1:]
folders = tuple(f"{tree}/{package}/" for package in packages.split(","))


def counting(what, function):
    def counted(*arguments, **options):
        counts[what] += 1
        return function(*arguments, **options)

    return counted


def seen(frame, event, argument):
    name = frame.f_code.co_filename
    if name.startswith(folders) and frame.f_code.co_name != "<module>":
        files.add(name)


hashlib.file_digest = counting("digests", hashlib.file_digest)
json.loads = counting("json", json.loads)
sys.setprofile(seen)
from qv_export.cli import run_command_line
code = run_command_line(arguments)
sys.setprofile(None)
assert code == 0, code
print(json.dumps({"files": len(files), "digests": counts["digests"], "json": counts["json"]}))
"""


def counts_of_command(tree: Path, arguments: list[str]) -> dict[str, int]:
    """Files whose functions run, digests of whole files and JSON texts parsed on the way of one command."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNTING, str(tree), ",".join(PACKAGES), *arguments],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


def size_of_product(tree: Path) -> tuple[int, int]:
    """Python files and their lines in the product's packages."""
    paths = [path for package in PACKAGES for path in (tree / package).rglob("*.py")]
    return len(paths), sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def names_with_two_owners(tree: Path, contracts: Sequence[str] = CONTRACTS) -> list[str]:
    """Public functions and classes of one name in two files: what a reader cannot tell apart by its name.

    Below a folder of `contracts`, each folder is one op or one target, and files of one name in them are one contract:
    what `plugins/*/kernel.py` call alike is alike, and has one owner.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in (tree / package).rglob("*.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            kinds = (ast.FunctionDef, ast.ClassDef)
            owner = _owner(path.relative_to(tree), contracts)
            for node in body:
                if isinstance(node, kinds) and node.name[0] != "_":
                    owners[node.name].add(owner)
    return sorted(name for name, files in owners.items() if len(files) > 1)


def _owner(path: Path, contracts: Sequence[str]) -> str:
    folder = path.parent.parent.as_posix()
    return f"{folder}/*/{path.name}" if folder in contracts else path.as_posix()


def rows_of(tree: Path) -> list[tuple[str, str]]:
    """Everything that is counted of one checkout, in words."""
    number, lines = size_of_product(tree)
    rows = [
        ("files of the product", str(number)),
        ("lines of the product", f"{lines:,}"),
        (
            "public names with two owners",
            f"{len(names_with_two_owners(tree))}, {len(names_with_two_owners(tree, ()))} with contracts",
        ),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        places = {"bundle": f"{scratch}/bundle", "scratch": scratch}
        checkpoint = str(tree / "models" / "qwen2-vl-tiny")
        counts_of_command(tree, ["export", checkpoint, "-o", places["bundle"], "--dtype", "float32"])
        for name, arguments in COMMANDS.items():
            counts = counts_of_command(tree, [argument.format(**places) for argument in arguments])
            text = f"{counts['files']} files, {counts['digests']} digests, {counts['json']} JSON texts"
            rows.append((name, text))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Count files, digests and reads on the way of each command.")
    parser.add_argument("--tree", type=Path, help="another checkout, counted beside this one")
    options = parser.parse_args()
    trees = [ROOT, *([options.tree.resolve()] if options.tree else [])]
    columns = [dict(rows_of(tree)) for tree in trees]
    print(f"{'':32}{'this tree':44}{'the other' if options.tree else ''}")
    for what in columns[0]:
        print(f"{what:32}" + "".join(f"{column[what]:44}" for column in columns))


if __name__ == "__main__":
    main()
