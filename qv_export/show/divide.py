"""What `qv-export build --plan --gpus N` says: every division of a model among GPUs, and the one to take."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from export.wording import size_text
from qv_export.show.console import print_json, print_table

if TYPE_CHECKING:
    from engines.sizing.divide import Division, Proposal
    from engines.sizing.limits import Limits

HEADER = (
    "ranks",
    "stages",
    "copies",
    "weights, fullest GPU",
    "KV cache a token",
    "tokens that fit",
    "sent a token",
    "links wanted",
)


def show_divisions(proposal: "Proposal", *, as_json: bool) -> bool:
    """Print a table and a sentence; False if no division fits."""
    if as_json:
        print_json(proposal_json(proposal))
    else:
        print_table("Divisions", HEADER, [division_row(one) for one in proposal.divisions])
        click.echo(sentence(proposal.best, proposal.limits))
    return proposal.best is not None


def division_row(one: "Division") -> tuple[str, ...]:
    """What a table says of a division, in the order of `HEADER`."""
    return (
        str(one.ranks),
        str(one.stages),
        str(one.replicas),
        size_text(one.weights_bytes),
        size_text(one.kv_bytes_per_token),
        f"{one.kv_tokens:,}" if one.fits else "does not fit",
        size_text(one.token_bytes) if one.token_bytes else "-",
        one.links,
    )


def sentence(best: "Division | None", limits: "Limits") -> str:
    """The division to take, and why."""
    if best is None:
        return "none fits: more GPUs, larger ones, or fewer bits (`export --quantize`)"
    each = f"{best.kv_tokens // limits.max_batch:,}"
    asked = f"{limits.max_batch} slots of {limits.max_context:,} tokens"
    is_enough = best.kv_tokens >= limits.max_context * limits.max_batch
    room = f"{asked} fit, up to {each} each" if is_enough else f"{asked} fit nowhere, {each} each do here"
    parts = best.ranks * best.stages
    if parts == 1:
        return f"proposed: {best.replicas} copies, undivided, which never wait for each other; {room}"
    where = f"{best.replicas} copies on {parts} GPUs each" if best.replicas > 1 else f"on {parts} GPUs"
    why = (
        "two sums a layer want fast links" if best.ranks > 1 else "a stage hands on one hidden state a token"
    )
    return f"proposed: export with {best.options}, {where}: {why}; {room}"


def proposal_json(proposal: "Proposal") -> dict[str, Any]:
    """The same as one object."""

    def content(one: "Division") -> dict[str, Any]:
        return {**asdict(one), "fits": one.fits, "links": one.links, "options": one.options}

    best = proposal.best
    return {
        "limits": asdict(proposal.limits),
        "divisions": [content(one) for one in proposal.divisions],
        "proposed": None if best is None else content(best),
    }
