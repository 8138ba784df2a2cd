"""Combinations of library version, GPU and use that are known to go wrong: what a row of a backend's table says."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class Situation:
    """What is about to be built or loaded."""

    version: str
    """Of the backend's library."""
    sms: tuple[int, ...]
    """Compute capability x 10."""
    limits: Mapping[str, int]
    dtype: str
    has_plugins: bool


def always(_situation: Situation) -> bool:
    """For an issue that needs no more than its versions and architectures."""
    return True


@dataclass(frozen=True)
class KnownIssue:
    """A combination that somebody found wrong: a reason to validate on that very machine, not a proof against it."""

    name: str
    versions: SpecifierSet
    """Of the backend's library; empty: all."""
    sms: tuple[int, ...]
    """Empty: all."""
    applies: Callable[[Situation], bool]
    what: str
    advice: str
    source: str

    def matches(self, situation: Situation) -> bool:
        return (
            self.versions.contains(situation.version, prereleases=True)
            and (not self.sms or bool(set(self.sms) & set(situation.sms)))
            and self.applies(situation)
        )

    def sentence(self) -> str:
        return f"known issue {self.name}: {self.what}. {self.advice} ({self.source})"


def matching(issues: Iterable[KnownIssue], situation: Situation) -> list[KnownIssue]:
    """The rows of a table that speak of this situation."""
    return [issue for issue in issues if issue.matches(situation)]
