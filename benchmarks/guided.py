"""Answers of a given form: whether all that are finished have it, and what a token of them costs.

    python -m benchmarks.guided BUNDLE [--schemas 500] [--first 0] [--rounds 6]

Asks the very endpoint of `qv-export serve` in this process, sixteen requests at a time. Schemas are drawn by Hypothesis
(`benchmarks.schema_grammar`), answers sampled at a high temperature; the package jsonschema judges them. The cost is
that of a token of sixteen answers in a form against one of sixteen free answers, in rounds that take turns, the least
of each: by the clock, by the processor's time of the whole process, and by that of the thread that steps the engine,
which is what an answer waits for and what other work on the machine disturbs least.
"""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.schema_grammar import FORMATS, Schema, schemas
from engines.open import choose_engine
from engines.serving.openai.app import make_app
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings
from engines.store.compatibility import this_machine
from export.bundle import open_bundle

Costs = tuple[float, float, float]
"""By the clock, of the process, of the thread that steps."""

CLIENTS = 16
NUM_TOKENS = 96
FREE = {"ignore_eos": True}
FORMS: dict[str, dict[str, Any]] = {
    "JSON schema": {"guided_json": {"type": "array", "items": {"type": "integer"}, "minItems": 400}},
    "JSON of objects": {
        "guided_json": {
            "type": "array",
            "minItems": 100,
            "items": {
                "type": "object",
                "properties": {"kind": {"enum": ["cat", "dog"]}, "name": {"type": "string"}},
                "required": ["kind", "name"],
                "additionalProperties": False,
            },
        }
    },
    "expression": {"guided_regex": "([a-z]+ ){300}"},
}


def drawn_schemas(number: int) -> list[Schema]:
    """As many schemas, the same ones in every run."""
    found: list[Schema] = []

    @settings(
        max_examples=number, derandomize=True, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(schemas)
    def collect(schema: Schema) -> None:
        found.append(schema)

    collect()
    return found


class Asker:
    """Asks the endpoint of a served model, `CLIENTS` requests at a time."""

    def __init__(self, model: ServedModel) -> None:
        self.step_seconds = 0.0
        """Processor time of the thread that steps the engine, so far."""
        scheduler = model.service.scheduler
        step = scheduler.step

        def timed_step() -> bool:
            started = time.thread_time()
            has_more = step()
            self.step_seconds += time.thread_time() - started
            return has_more

        scheduler.step = timed_step  # type: ignore[method-assign]
        self._app = make_app(model, "model", with_page=False).state.chat

    async def ask(self, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and content of one answer."""
        body = {"messages": [{"role": "user", "content": "Tell me more."}], **fields}
        return await call_local(self._app, json.dumps(body).encode(), "x")

    async def ask_all(self, requests: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """In the order of the requests."""
        room = asyncio.Semaphore(CLIENTS)

        async def one(fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            async with room:
                return await self.ask(fields)

        return list(await asyncio.gather(*map(one, requests)))

    def close(self) -> None:
        """End its threads."""
        self._app.close()


async def proved(asker: Asker, number: int, first: int) -> Counter[str]:
    """How many answers were right, wrong, cut or refused.

    Raises:
        AssertionError: a finished answer that does not parse or does not validate.
    """
    asked = drawn_schemas(number)[first:]
    # By turns near what the model would say, and near chance.
    requests = [
        {
            "guided_json": schema,
            "seed": seed,
            "temperature": 1.5 if seed % 2 else 0.7,
            "top_k": 0,
            "max_tokens": 400,
        }
        for seed, schema in enumerate(asked, first)
    ]
    told: Counter[str] = Counter()
    for schema, (status, content) in zip(asked, await asker.ask_all(requests), strict=True):
        if status != 200:
            assert status == 400, content
            told["refused"] += 1
            continue
        [choice] = content["choices"]
        if choice["finish_reason"] == "length":
            told["cut"] += 1
            continue
        jsonschema.validate(json.loads(choice["message"]["content"]), schema, format_checker=FORMATS)
        told["right"] += 1
    return told


async def seconds_per_token(asker: Asker, form: dict[str, Any]) -> Costs:
    """Seconds of a token, over sixteen answers at once."""
    wishes = {**form, "max_tokens": NUM_TOKENS}
    before = time.perf_counter(), time.process_time(), asker.step_seconds
    answers = await asker.ask_all([{**wishes, "seed": seed} for seed in range(CLIENTS)])
    after = time.perf_counter(), time.process_time(), asker.step_seconds
    num_tokens = sum(content["usage"]["completion_tokens"] for _, content in answers)
    clock, process, stepping = ((end - start) / num_tokens for start, end in zip(before, after, strict=True))
    return clock, process, stepping


async def costs(asker: Asker, rounds: int) -> dict[str, Costs]:
    """Of each form, against free answers: the least of all rounds, since other work on the machine only adds."""
    found: dict[str, list[Costs]] = {"free": [], **{name: [] for name in FORMS}}
    for _ in range(rounds + 1):
        for name, form in {"free": FREE, **FORMS}.items():
            found[name].append(await seconds_per_token(asker, form))
    least = {name: np.min(of_rounds[1:], axis=0) for name, of_rounds in found.items()}  # the first warms up
    free = least.pop("free")
    return {name: tuple((of_form / free).tolist()) for name, of_form in least.items()}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--schemas", "number", type=click.IntRange(min=0), default=500, show_default=True)
@click.option("--first", type=click.IntRange(min=0), default=0, help="Leave out those before this one.")
@click.option("--rounds", type=click.IntRange(min=0), default=6, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(bundle: Path, number: int, first: int, rounds: int, threads: int) -> None:
    """Print both."""
    opened = open_bundle(bundle)
    served = ServerSettings(num_slots=CLIENTS, capacity=512, num_threads=threads)
    chosen = choose_engine(opened, None, num_slots=CLIENTS, capacity=512, machine=this_machine())
    with ServedModel(opened, chosen, served) as model, asyncio.Runner() as runner:
        asker = Asker(model)
        try:
            if number:
                told = runner.run(proved(asker, number, first))
                print(
                    f"schemas {first} to {number}: "
                    + ", ".join(f"{count} {name}" for name, count in told.items())
                )
            for name, (clock, process, stepping) in (
                runner.run(costs(asker, rounds)).items() if rounds else ()
            ):
                print(
                    f"a token in a form ({name}) against a free one: {clock:.3f} by the clock, {process:.3f} of the "
                    f"process, {stepping:.3f} of the stepping thread"
                )
        finally:
            asker.close()


if __name__ == "__main__":
    main()
