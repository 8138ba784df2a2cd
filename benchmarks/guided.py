"""Answers of a given form: whether all that are finished have it, and what a token of them costs.

    python -m benchmarks.guided BUNDLE [--schemas 500] [--rounds 6]

Asks the very endpoint of `qv-export serve` in this process, sixteen requests at a time. Schemas are drawn by Hypothesis
(`benchmarks.schema_grammar`), answers sampled at a high temperature; the package jsonschema judges them. The cost is
that of a token of sixteen answers in a form against one of sixteen free answers, in rounds that take turns.
"""

import asyncio
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import jsonschema
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.schema_grammar import Schema, schemas
from engines.open import choose_engine
from engines.serving.openai.app import make_app
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings
from engines.store.compatibility import this_machine
from export.bundle import open_bundle

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


async def proved(asker: Asker, number: int) -> Counter[str]:
    """How many answers were right, wrong, cut or refused.

    Raises:
        AssertionError: a finished answer that does not parse or does not validate.
    """
    asked = drawn_schemas(number)
    # By turns near what the model would say, and near chance.
    requests = [
        {
            "guided_json": schema,
            "seed": seed,
            "temperature": 1.5 if seed % 2 else 0.7,
            "top_k": 0,
            "max_tokens": 400,
        }
        for seed, schema in enumerate(asked)
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
        jsonschema.validate(
            json.loads(choice["message"]["content"]), schema, format_checker=jsonschema.FormatChecker()
        )
        told["right"] += 1
    return told


async def seconds_per_token(asker: Asker, form: dict[str, Any]) -> tuple[float, float]:
    """Wall and processor seconds of a token, over sixteen answers at once."""
    wishes = {**form, "max_tokens": NUM_TOKENS}
    started, worked = time.perf_counter(), time.process_time()
    answers = await asker.ask_all([{**wishes, "seed": seed} for seed in range(CLIENTS)])
    elapsed, work = time.perf_counter() - started, time.process_time() - worked
    num_tokens = sum(content["usage"]["completion_tokens"] for _, content in answers)
    return elapsed / num_tokens, work / num_tokens


async def costs(asker: Asker, rounds: int) -> dict[str, tuple[float, float]]:
    """Of each form, against free answers: medians over rounds of wall and of processor time."""
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    for form in (FREE, *FORMS.values()):
        await seconds_per_token(asker, form)  # warm
    for _ in range(rounds):
        for name, form in FORMS.items():
            free, formed = await seconds_per_token(asker, FREE), await seconds_per_token(asker, form)
            ratios[name].append((formed[0] / free[0], formed[1] / free[1]))
    return {
        name: (statistics.median(wall for wall, _ in found), statistics.median(work for _, work in found))
        for name, found in ratios.items()
    }


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--schemas", "number", type=click.IntRange(min=0), default=500, show_default=True)
@click.option("--rounds", type=click.IntRange(min=0), default=6, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(bundle: Path, number: int, rounds: int, threads: int) -> None:
    """Print both."""
    opened = open_bundle(bundle)
    served = ServerSettings(num_slots=CLIENTS, capacity=512, num_threads=threads)
    chosen = choose_engine(opened, None, num_slots=CLIENTS, capacity=512, machine=this_machine())
    with ServedModel(opened, chosen, served) as model, asyncio.Runner() as runner:
        asker = Asker(model)
        try:
            if number:
                told = runner.run(proved(asker, number))
                print(f"{number} schemas: " + ", ".join(f"{count} {name}" for name, count in told.items()))
            for name, (wall, work) in runner.run(costs(asker, rounds)).items() if rounds else ():
                print(
                    f"a token in a form ({name}) against a free one: {wall:.3f} of the time, {work:.3f} of the work"
                )
        finally:
            asker.close()


if __name__ == "__main__":
    main()
