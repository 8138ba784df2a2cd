"""Bundles as the validator leaves them, without the minutes that a validation takes."""

import os
import shutil
from pathlib import Path
from typing import Any

from engines.open import choice_to_serve
from engines.proof import digests_of
from export.bundle import Bundle, open_bundle
from export.records.verdicts import Verdict, keep_verdict


def verdict_of(bundle: Bundle, engine: str | None = None, **changes: Any) -> Verdict:
    """A proof of what would answer, but for `changes`."""
    chosen = choice_to_serve(bundle, engine)
    fields: dict[str, Any] = {
        "engine_key": chosen.key,
        "target": chosen.backend.name,
        "level": "standard",
        "passed": True,
        "gates_digest": "0" * 16,
        "gate_kind": "default",
        "multiple": 4.0,
        "is_narrow": False,
        "num_gates": 353,
        "num_failed": 0,
        "bundle_key": bundle.manifest.key,
        "digests": digests_of(bundle, chosen),
        "created": "2026-11-01T00:00:00+00:00",
        "versions": {"qv-export": "0.1.0"},
    }
    return Verdict(**{**fields, **changes})


def judged(bundle: Bundle, directory: Path, engine: str | None = None, **changes: Any) -> Bundle:
    """The bundle at another place, by hard links, with a verdict."""
    shutil.copytree(bundle.directory, directory, copy_function=os.link)
    copied = open_bundle(directory)
    keep_verdict(directory, verdict_of(copied, engine, **changes))
    return copied
