"""Whether what will answer was proven: a verdict of that very engine, on the very bytes that it has now."""

import shlex
from collections.abc import Mapping, Sequence

from engines.open import Choice
from export.bundle import Bundle
from export.errors import UserError
from export.records.verdicts import Verdict


def digests_of(bundle: Bundle, chosen: Choice) -> dict[str, str]:
    """sha256 of every byte that an engine computes with: weights and engine files, by path inside the bundle.

    Reads all of them.

    Raises:
        UserError: a file differs from what was recorded of it; each is named.
    """
    record = chosen.record
    return {**bundle.weight_digests(), **({} if record is None else bundle.engine_digests(record))}


def find_proof(bundle: Bundle, chosen: Choice, digests: Mapping[str, str]) -> Verdict:
    """The verdict that shows that what was chosen computes what the model means.

    Raises:
        UserError: there is none; what there is, and the command that would give one.
    """
    verdicts = bundle.verdicts(chosen.key)
    proofs = [
        verdict for verdict in verdicts if verdict.is_proof and not _objection(verdict, bundle, digests)
    ]
    refuted = [
        verdict
        for verdict in verdicts
        if not verdict.passed and verdict.gate_kind == "default" and not _objection(verdict, bundle, digests)
    ]
    newest = max(proofs, key=lambda verdict: verdict.created, default=None)
    if newest is not None and all(verdict.created < newest.created for verdict in refuted):
        return newest
    raise UserError(
        _no_proof(bundle, chosen, verdicts, digests),
        f"Run `{validation_command(bundle, chosen)}`, or deploy it all the same with --allow-unvalidated; the "
        "repository will say so.",
    )


def validation_command(bundle: Bundle, chosen: Choice) -> str:
    """The command line whose verdict would do."""
    what = f"--target {chosen.backend.name}" if chosen.record is None else f"--engine {chosen.key}"
    return f"qv-export validate {shlex.quote(str(bundle.directory))} {what} --report REPORT"


def _no_proof(bundle: Bundle, chosen: Choice, verdicts: Sequence[Verdict], digests: Mapping[str, str]) -> str:
    name = (
        chosen.backend.name if chosen.record is None else f"the engine {chosen.key} ({chosen.backend.name})"
    )
    found = [
        f"{verdict.created}: {_objection(verdict, bundle, digests) or _shortfall(verdict)}"
        for verdict in verdicts
    ]
    others = sorted({verdict.target for verdict in bundle.all_verdicts() if verdict.engine_key != chosen.key})
    if not found and others:
        found = [f"what was validated is another engine: {', '.join(others)}"]
    listed = "".join(f"\n- {line}" for line in found)
    return (
        f"{bundle.directory} was not validated with what would answer, {name}: nobody has shown that it computes what "
        f"the model means.{listed}"
    )


def _objection(verdict: Verdict, bundle: Bundle, digests: Mapping[str, str]) -> str | None:
    """Why a verdict is of something else than what is there."""
    if verdict.bundle_key != bundle.manifest.key:
        return f"of bundle {verdict.bundle_key}, this one is {bundle.manifest.key}"
    changed = sorted(name for name, digest in digests.items() if verdict.digests.get(name) != digest)
    if changed:
        return f"given for other bytes of {', '.join(changed)}"
    return None


def _shortfall(verdict: Verdict) -> str:
    """Why a verdict on these very bytes is no proof."""
    if not verdict.passed:
        return f"failed at {verdict.level}, {verdict.num_failed} of {verdict.num_gates} gates"
    if verdict.gate_kind == "looser":
        return f"passed at {verdict.level} by gates that grant more than the defaults (multiple {verdict.multiple:g})"
    if verdict.is_narrow:
        return f"passed at {verdict.level} for smaller shapes than usual (--max-context, --max-patches, --max-batch)"
    if not verdict.is_proof:
        return f"passed at {verdict.level} alone; standard is the least that counts"
    return f"passed at {verdict.level}, and a later validation failed"
