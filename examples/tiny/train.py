"""Trains the small model: the paper's three stages (arXiv 2409.12191, section 2.2), after a warm-up.

    python -m examples.tiny.train build/tiny [--scale 1.0] [--seed 0] [--stage NAME] [--from CHECKPOINT ...]

Writes into build/tiny: state.pt, from which a killed run goes on, log.jsonl, loss.png, and checkpoint/, a Hugging
Face directory.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, distributed, multiprocessing, nn
from torch.multiprocessing.spawn import spawn

from examples.tiny.batches import Batch, make_batch
from examples.tiny.checkpoint import checkpoint_argument, read_weights, write_config_files, write_weights
from examples.tiny.contents import Codebook
from examples.tiny.optimizer import Optimizer
from examples.tiny.packed_attention import attention_over_documents
from examples.tiny.plan import MIXTURE, Plan, Stage
from examples.tiny.plots import plot_loss
from examples.tiny.tasks import CHINESE
from export.checkpoint.config import load_config
from export.models.qwen2_vl.model import Qwen2VL
from export.processor.processor import Processor
from export.processor.text.tokenizer import load_tokenizer

SAVE_EVERY_STEPS = 100
ANSWERS_TO_VISION = 0.05
"""Share of the answers' gradient that reaches the vision encoder: whole, it drowns what visual tokens are told."""
CODE_NOISE = 0.04
"""Standard deviation of what is added to each value of a code: the vision encoder will not be exact either."""

# --- one step -----------------------------------------------------------------------------------------


def step_losses(
    model: Qwen2VL, codebook: Codebook, batch: Batch, stage: Stage, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to descend, and of each answer its loss and whether it is right; of visual tokens likewise."""
    parts: dict[str, Tensor] = {}
    loss = batch.targets.new_zeros((), dtype=torch.float32)
    with attention_over_documents(batch.cu_seqlens.tolist(), batch.documents, batch.token_ids.device):
        if stage.drawn:
            visual_embeds = model.encode(batch.patches, batch.positions, batch.cu_seqlens)
            parts["contents"], parts["contents_right"] = codebook.loss(
                visual_embeds, batch.things, batch.edges
            )
            loss = loss + parts["contents"]
            if stage.answers:
                fixed = visual_embeds.detach()
                visual_embeds = fixed + ANSWERS_TO_VISION * (visual_embeds - fixed)
        else:
            noise = torch.Generator().manual_seed(seed)
            codes = codebook.embeddings(batch.things, batch.edges)
            visual_embeds = codes + CODE_NOISE * torch.randn(codes.shape, generator=noise).to(codes.device)
        if stage.answers:
            logits = answer_logits(model, batch, visual_embeds)
            answers, parts["answers"], parts["answers_right"] = loss_and_right(logits, batch)
            loss = loss + answers
    return loss, parts


def answer_logits(model: Qwen2VL, batch: Batch, visual_embeds: Tensor) -> Tensor:
    """Logits of the answer tokens [A, vocab] of packed samples, each attending to itself alone."""
    x = model.embed(batch.token_ids, visual_embeds)
    no_cache = [x.new_zeros(0)] * model.config.decoder.num_hidden_layers
    unused = batch.targets.new_zeros(1)
    x, _ = model.model(x, batch.position_ids, unused, unused, no_cache, no_cache)
    return model.project(x, batch.logits_index)[0]


def loss_and_right(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, and of each answer: its own loss, and whether every token is the most likely one.

    An answer weighs as the fourth root of its length: a box has twenty tokens, a number one.
    """
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    turns = batch.target_turns
    lengths = turns.bincount()
    weights = lengths[turns].float() ** -0.75
    of_turn = losses.new_zeros(len(lengths)).index_add(0, turns, losses.detach()) / lengths
    wrong = (logits.argmax(-1) != batch.targets).long()
    num_wrong = turns.new_zeros(len(lengths)).index_add(0, turns, wrong)
    return (losses * weights).sum() / weights.sum(), of_turn, num_wrong == 0


def freeze(model: Qwen2VL, stage: Stage) -> None:
    """Which part learns in a stage."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(stage.learns))


def train_step(
    model: Qwen2VL,
    codebook: Codebook,
    optimizer: Optimizer,
    batch: Batch,
    tasks: list[str],
    plan: Plan,
    step: int,
) -> dict[str, Any]:
    """One update; returns the line of the log."""
    started = time.perf_counter()
    stage, stage_step = plan.at(step)
    freeze(model, stage)
    loss, parts = step_losses(model, codebook, batch, stage, seed=step)
    loss.backward()
    share_gradients(model)
    rate = stage.rate_at(stage_step)
    norm = optimizer.step(rate)
    entry: dict[str, Any] = {
        "step": step,
        "stage": stage.name,
        "loss": round(loss.item(), 4),
        "norm": round(norm, 3),
        "rate": round(rate, 4),
        "seconds": round(time.perf_counter() - started, 2),
        "tokens": batch.token_ids.shape[1],
        "visual_tokens": len(batch.things),
        "tasks": {},
    }
    if stage.drawn:
        shows = batch.things[:, 0] > 0
        entry["contents"] = round(parts["contents"].item(), 4)
        entry["contents_right"] = round(parts["contents_right"][shows].float().mean().item(), 4)
    if stage.answers:
        task_of_turn = [tasks[i] for i in batch.turn_samples.tolist()]
        for task in MIXTURE:
            of_task = torch.tensor([name == task for name in task_of_turn])
            if of_task.any():
                figures = (parts["answers"], parts["answers_right"])
                entry["tasks"][task] = [round(float(x.cpu()[of_task].float().mean()), 4) for x in figures]
    return entry


# --- the run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Of each step's samples: every `number`-th, from `index` on. One training process takes one share."""

    index: int = 0
    number: int = 1


def share_gradients(model: nn.Module) -> None:
    """Give every process the mean of all processes' gradients."""
    if not distributed.is_initialized():
        return
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _produce(queue: Any, finished: Any, directory: Path, plan: Plan, start: int, share: Share) -> None:
    os.nice(PRODUCER_NICENESS)
    torch.set_num_threads(1)
    processor = Processor.from_directory(directory)
    for step in range(start, plan.steps):
        samples = plan.samples(step)[share.index :: share.number]
        batch = make_batch(samples, processor, drawn=plan.at(step)[0].drawn)
        queue.put((step, batch, [sample.task for sample in samples]))
    finished.wait()  # tensors that are still in the queue live in this process's shared memory


MOST_PROCESSES = 8
"""A share of a step's samples must still be a batch."""
PRODUCER_NICENESS = 5
BATCHES_AHEAD = 20


def batches_from(
    directory: Path, plan: Plan, start: int, share: Share
) -> Iterator[tuple[int, Batch, list[str]]]:
    """This share of every step's batch, made ahead by another process."""
    queue: Any = multiprocessing.Queue(maxsize=BATCHES_AHEAD)
    finished = multiprocessing.Event()
    arguments = (queue, finished, directory, plan, start, share)
    producer = multiprocessing.Process(target=_produce, args=arguments, daemon=True)
    producer.start()
    for _ in range(start, plan.steps):
        yield queue.get()
    finished.set()
    producer.join()


def train(directory: Path, plan: Plan, weights: Sequence[Path] = (), processes: int = 1) -> None:
    """Run the plan, from where the last run in this directory ended.

    Args:
        directory: of the run.
        plan: what is learned when.
        weights: checkpoints to begin with; a second one gives its vision encoder.
        processes: that share each step's samples, and their gradients: on a CPU two with a thread each are faster than
            one with two threads. The run depends on their number.
    """
    if processes == 1:
        _train_share(0, 1, directory, plan, weights, meeting=None)
        return
    with tempfile.TemporaryDirectory() as name:
        arguments = (processes, directory, plan, weights, f"file://{name}/meeting", os.getpid())
        spawn(_train_share, arguments, processes)


def _train_share(
    index: int,
    number: int,
    directory: Path,
    plan: Plan,
    weights: Sequence[Path],
    meeting: str | None,
    parent: int = 0,
) -> None:
    """One process; the first one writes the log and saves. It ends with its parent: no two runs may write at once."""
    if meeting:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=meeting, rank=index, world_size=number)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer, start = prepare(directory, plan, weights, device)
    codebook = Codebook(model.config.decoder.hidden_size).to(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, disable=index > 0 or not sys.stderr.isatty())
    log_file = directory / "log.jsonl" if index == 0 else Path(os.devnull)
    with log_file.open("a", encoding="utf-8") as log, progress:
        bar = progress.add_task("", total=plan.steps, completed=start)
        batches = batches_from(directory / "checkpoint", plan, start, Share(index, number))
        for step, batch, tasks in batches:
            if meeting and os.getppid() != parent:
                raise SystemExit("the training's main process is gone")
            entry = train_step(model, codebook, optimizer, batch.to(device), tasks, plan, step)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            progress.update(bar, advance=1, description=f"stage {entry['stage']}, loss {entry['loss']:.3f}")
            if index == 0 and ((step + 1) % SAVE_EVERY_STEPS == 0 or step + 1 == plan.steps):
                save(directory, optimizer, step + 1)
    if meeting:
        distributed.destroy_process_group()


def prepare(
    directory: Path, plan: Plan, weights: Sequence[Path], device: str
) -> tuple[Qwen2VL, Optimizer, int]:
    """The model, its optimizer and the step to begin with: new, from checkpoints, or as the last run left them.

    Of two checkpoints, the second gives the vision encoder.
    """
    torch.manual_seed(plan.seed)
    model = Qwen2VL(load_config(directory / "checkpoint"))
    initialize(model)
    spell_with_codes(model, directory / "checkpoint")
    model.load_state_dict(read_weights(weights), strict=False)  # the tied head is not stored
    model.float().to(device)
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


@torch.no_grad()
def spell_with_codes(model: Qwen2VL, directory: Path) -> None:
    """A word's token begins as the code that visual tokens have that show it: copying and looking up are in reach."""
    tokenizer = load_tokenizer(directory)
    for word, code in Codebook(model.config.decoder.hidden_size).words.items():
        for text in {word, f" {word}", CHINESE.get(word, word)}:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) == 1:
                model.model.embed_tokens.weight[ids[0]] = code


def save(directory: Path, optimizer: Optimizer, step: int) -> None:
    """The training state and the checkpoint; written aside and renamed, so that a killed run leaves the last one."""
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, directory / "state.new")
    (directory / "state.new").replace(directory / "state.pt")
    write_weights(directory / "checkpoint", optimizer.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small Qwen2-VL.")
    parser.add_argument("directory", type=Path, help="where the state, the log and the checkpoint go")
    parser.add_argument("--scale", type=float, default=1.0, help="lengthens every stage by this factor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="that share each step; default: one for each CPU core")
    parser.add_argument("--stage", choices=[stage.name for stage in Plan().stages], help="only this one")
    parser.add_argument(
        "--from",
        dest="weights",
        type=checkpoint_argument,
        nargs="+",
        default=(),
        metavar="CHECKPOINT",
        help="begin with this one; a second gives its vision encoder",
    )
    options = parser.parse_args()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    write_config_files(directory / "checkpoint")
    plan = Plan(seed=options.seed).scaled(options.scale)
    if options.stage:
        plan = plan.only(options.stage)
    cores = 1 if torch.cuda.is_available() else min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    train(directory, plan, options.weights, options.processes or cores)
    plot_loss(directory / "log.jsonl", directory / "loss.png")


if __name__ == "__main__":
    main()
