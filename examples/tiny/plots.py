"""Two pictures for the docs: training loss, and accuracy by size.

python -m examples.tiny.plots build/tiny/log.jsonl ablations.json docs/pictures
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

SMOOTHING_STEPS = 40


def plot_loss(log: Path, picture: Path) -> None:
    """Loss and share of right answers by task over the steps, smoothed; a shade marks each stage.

    The dashed lines are what visual tokens are told: the loss on it, and the share of those that say it right.
    """
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, (losses, accuracies) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for name, points in _curves(entries).items():
        steps, loss, right = (np.array(column) for column in zip(*points, strict=True))
        style = {"label": name, "color": "black", "ls": "--"} if name == CONTENTS else {"label": name}
        losses.plot(*_smooth(steps, loss), **style)
        accuracies.plot(*_smooth(steps, right), **style)
    losses.set(yscale="log", ylabel="loss per answer token")
    accuracies.set(xlabel="step", ylabel="training answers right", ylim=(0, 1.02))
    stages = [entry["stage"] for entry in entries]
    for number, name in enumerate(dict.fromkeys(stages)):
        first, last = stages.index(name), len(stages) - 1 - stages[::-1].index(name)
        for axes in (losses, accuracies):
            axes.axvspan(
                entries[first]["step"],
                entries[last]["step"],
                color="tab:gray",
                alpha=(0.05, 0.15)[number % 2],
                lw=0,
            )
        losses.text(entries[first]["step"], losses.get_ylim()[1], name, fontsize=8, va="bottom")
    accuracies.legend(ncols=4, fontsize=8)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


CONTENTS = "contents of tokens"


def _curves(entries: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """(step, loss, share right) of each task, and of what visual tokens are told."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for entry in entries:
        if "contents" in entry:
            point = (entry["step"], entry["contents"], entry["contents_right"])
            curves.setdefault(CONTENTS, []).append(point)
        for task, (loss, right) in entry["tasks"].items():
            curves.setdefault(task, []).append((entry["step"], loss, right))
    return dict(sorted(curves.items()))


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = min(SMOOTHING_STEPS, len(values))
    kernel = np.ones(width) / width
    smooth = np.convolve(values, kernel, "valid")
    span = steps[width - 1 :] - steps[: len(steps) - width + 1]
    smooth[span > 5 * width] = np.nan  # no line across a stage without the curve
    return np.convolve(steps, kernel, "valid"), smooth


def plot_sizes(report: Path, picture: Path) -> None:
    """Reading accuracy over the picture's size."""
    sizes = json.loads(report.read_text(encoding="utf-8"))["sizes"]
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    labels = [f"{width}×{height}" for width, height, _ in sizes]
    axes.plot(labels, [100 * right for *_, right in sizes], marker="o")
    axes.set(ylim=(0, 102), xlabel="picture, pixels", ylabel="read exactly, %")
    axes.tick_params(axis="x", rotation=40)
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    log, report, folder = (Path(argument) for argument in sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    plot_loss(log, folder / "tiny-loss.png")
    plot_sizes(report, folder / "tiny-sizes.png")
