"""What do training and evaluation look like? Two pictures for the docs.

python -m examples.tiny.plots build/tiny/log.jsonl ablations.json docs/pictures
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

SMOOTHING_STEPS = 40


def plot_loss(log: Path, picture: Path) -> None:
    """Loss by task over the steps, smoothed; a shade marks each stage."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, (losses, accuracies) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for task in sorted({task for entry in entries for task in entry["tasks"]}):
        points = [(entry["step"], *entry["tasks"][task]) for entry in entries if task in entry["tasks"]]
        steps, loss, right = (np.array(column) for column in zip(*points, strict=True))
        losses.plot(*_smooth(steps, loss), label=task)
        accuracies.plot(*_smooth(steps, right), label=task)
    losses.set(yscale="log", ylabel="loss per answer token")
    accuracies.set(xlabel="step", ylabel="training answers right")
    stages = [entry["stage"] for entry in entries]
    for name in dict.fromkeys(stages):
        first, last = stages.index(name), len(stages) - 1 - stages[::-1].index(name)
        for axes in (losses, accuracies):
            axes.axvspan(entries[first]["step"], entries[last]["step"], alpha=0.04 + 0.06 * (len(name) % 2))
        losses.text(entries[first]["step"], losses.get_ylim()[1], name, fontsize=8, va="bottom")
    accuracies.legend(ncols=4, fontsize=8)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = min(SMOOTHING_STEPS, len(values))
    kernel = np.ones(width) / width
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")


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
