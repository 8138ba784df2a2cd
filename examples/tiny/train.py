"""How is the small model trained? The paper's three stages (arXiv 2409.12191, section 2.2), after a text warm-up.

    python -m examples.tiny.train build/tiny [--steps 6000] [--seed 0] [--processes 2] [--from CHECKPOINT]

Writes into build/tiny: state.pt, from which a killed run goes on, log.jsonl, loss.png, and checkpoint/, a Hugging
Face directory.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor, distributed, multiprocessing, nn

from examples.tiny.batches import Batch, make_batch
from examples.tiny.checkpoint import write_config_files, write_weights
from examples.tiny.optimizer import Optimizer
from examples.tiny.packed_attention import attention_over_documents
from examples.tiny.plan import MIXTURE, Plan
from examples.tiny.plots import plot_loss
from export.config import load_config
from export.processor.processor import Processor
from export.reference.model import Qwen2VL

SAVE_EVERY_STEPS = 50
AVERAGE_EVERY_STEPS = 10
"""Processes train apart and then take the mean of their weights: on busy cores they would wait for one another in
every step that they shared."""

# --- one step -----------------------------------------------------------------------------------------


def answer_logits(model: Qwen2VL, batch: Batch) -> Tensor:
    """Logits of the answer tokens [A, vocab] of packed samples, each attending to itself alone."""
    with attention_over_documents(batch.cu_seqlens.tolist(), batch.documents, batch.patches.device):
        if len(batch.patches):
            visual_embeds = model.encode(batch.patches, batch.positions, batch.cu_seqlens)
        else:
            visual_embeds = batch.patches.new_zeros(0, model.config.decoder.hidden_size)
        x = model.embed(batch.token_ids, visual_embeds)
        no_cache = [x.new_zeros(0)] * model.config.decoder.num_hidden_layers
        unused = batch.targets.new_zeros(1)
        x, _, _ = model.model(x, batch.position_ids, unused, unused, no_cache, no_cache)
        return model.project(x, batch.logits_index)[0]


def loss_and_right(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, and of each sample: its own loss, and whether every answer token is the most likely one.

    A sample weighs as the square root of its answer's length: a box has twenty tokens, a number one.
    """
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    documents = batch.target_documents
    lengths = documents.bincount()
    weights = lengths[documents].float() ** -0.5
    of_sample = losses.new_zeros(len(lengths)).index_add(0, documents, losses.detach()) / lengths
    wrong = (logits.argmax(-1) != batch.targets).long()
    num_wrong = documents.new_zeros(len(lengths)).index_add(0, documents, wrong)
    return (losses * weights).sum() / weights.sum(), of_sample, num_wrong == 0


def freeze(model: Qwen2VL, stage: str) -> None:
    """Which part learns in a stage."""
    vision, language = stage in {"1 vision", "2 all"}, stage != "1 vision"
    for name, weight in model.named_parameters():
        weight.requires_grad_(vision if name.startswith("visual.") else language)


def train_step(
    model: Qwen2VL, optimizer: Optimizer, batch: Batch, tasks: list[str], plan: Plan, step: int
) -> dict[str, Any]:
    """One update; returns the line of the log."""
    started = time.perf_counter()
    freeze(model, plan.stage(step))
    loss, losses, right = loss_and_right(answer_logits(model, batch), batch)
    loss.backward()
    norm = optimizer.step(plan.rate(step))
    seconds = time.perf_counter() - started
    by_task = {}
    for task in MIXTURE:
        of_task = torch.tensor([name == task for name in tasks])
        if of_task.any():
            by_task[task] = [round(float(x[of_task].float().mean()), 4) for x in (losses.cpu(), right.cpu())]
    return {
        "step": step,
        "stage": plan.stage(step),
        "loss": round(loss.item(), 4),
        "norm": round(norm, 3),
        "rate": round(plan.rate(step), 4),
        "level": round(plan.level(step), 3),
        "seconds": round(seconds, 2),
        "tokens": batch.token_ids.shape[1],
        "patches": len(batch.patches),
        "tasks": by_task,
    }


# --- the run ------------------------------------------------------------------------------------------


def _produce(queue: Any, finished: Any, directory: Path, plan: Plan, start: int, rank: int) -> None:
    torch.set_num_threads(1)
    processor = Processor.from_directory(directory)
    for step in range(start, plan.steps):
        samples = plan.samples(step, rank)
        queue.put((step, make_batch(samples, processor), [sample.task for sample in samples]))
    finished.wait()  # tensors that are still in the queue live in this process's shared memory


def batches_from(
    directory: Path, plan: Plan, start: int, rank: int
) -> Iterator[tuple[int, Batch, list[str]]]:
    """Every step's batch, made one process ahead."""
    queue: Any = multiprocessing.Queue(maxsize=3)
    finished = multiprocessing.Event()
    arguments = (queue, finished, directory, plan, start, rank)
    worker = multiprocessing.Process(target=_produce, args=arguments, daemon=True)
    worker.start()
    for _ in range(start, plan.steps):
        yield queue.get()
    finished.set()
    worker.join()


def train(rank: int, world: int, directory: Path, plan: Plan, weights: Path | None) -> None:
    """One of `world` processes; each has samples of its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world > 1:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", init_method=f"file://{directory}/join", rank=rank, world_size=world
        )
    model, optimizer, start = prepare(directory, plan, weights, device)
    with (
        (directory / f"log{rank or ''}.jsonl").open("a", encoding="utf-8") as log,
        _progress(rank) as progress,
    ):
        bar = progress.add_task("", total=plan.steps, completed=start)
        for step, batch, tasks in batches_from(directory / "checkpoint", plan, start, rank):
            entry = train_step(model, optimizer, batch.to(device), tasks, plan, step)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            progress.update(bar, advance=1, description=f"stage {entry['stage']}, loss {entry['loss']:.3f}")
            last = step + 1 == plan.steps
            if world > 1 and ((step + 1) % AVERAGE_EVERY_STEPS == 0 or last):
                optimizer.average()
            if rank == 0 and ((step + 1) % SAVE_EVERY_STEPS == 0 or last):
                save(directory, optimizer, step + 1)


def _progress(rank: int) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=rank > 0 or not sys.stderr.isatty())


def prepare(directory: Path, plan: Plan, weights: Path | None, device: str) -> tuple[Qwen2VL, Optimizer, int]:
    """The model, its optimizer and the step to begin with: new, from a checkpoint, or as the last run left them."""
    torch.manual_seed(plan.seed)
    model = Qwen2VL(load_config(directory / "checkpoint"))
    initialize(model)
    if weights is not None:
        model.load_state_dict(
            load_file(weights / "model.safetensors"), strict=False
        )  # the tied head is not stored
    model.bfloat16().to(device)
    optimizer = Optimizer(model)
    if not (directory / "state.pt").exists():
        return model, optimizer, 0
    state = torch.load(directory / "state.pt", map_location=device)
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer, state["step"]


def initialize(model: Qwen2VL) -> None:
    """Normal weights of variance 0.36 / fan-in, biases zero, norms one."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.normal_(weight, std=0.05 if "embed_tokens" in name else 0.6 * weight[0].numel() ** -0.5)


def save(directory: Path, optimizer: Optimizer, step: int) -> None:
    """The training state and the checkpoint; written aside and renamed, so that a killed run leaves the last one."""
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, directory / "state.new")
    (directory / "state.new").replace(directory / "state.pt")
    write_weights(directory / "checkpoint", optimizer.masters)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small Qwen2-VL.")
    parser.add_argument("directory", type=Path, help="where the state, the log and the checkpoint go")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--from", dest="weights", type=Path, help="checkpoint to go on from, without warm-up and stage 1"
    )
    parser.add_argument(
        "--processes", type=int, help="default: one for each CPU core, one where there is a GPU"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an orderly exit ends the other processes too
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "join").unlink(missing_ok=True)
    write_config_files(directory / "checkpoint")
    plan = Plan(steps=options.steps, seed=options.seed)
    if options.weights is not None:
        plan = plan.going_on()
    # Processes, not threads: those would wait for one another in every one of thousands of small operations.
    world = options.processes or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    others = [
        multiprocessing.Process(target=train, args=(rank, world, directory, plan, options.weights))
        for rank in range(1, world)
    ]
    for process in others:
        process.start()
    train(0, world, directory, plan, options.weights)
    for process in others:
        process.join()
    plot_loss(directory / "log.jsonl", directory / "loss.png")


if __name__ == "__main__":
    main()
