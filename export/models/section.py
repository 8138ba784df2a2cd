"""One JSON object of a configuration file: hands out checked values, and knows which of its keys nobody asked for."""

from collections.abc import Iterable, Mapping
from typing import Any

from export.files.checks import is_number, is_whole

MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e12


class Section:
    """Values of one object by key; null counts as absent, as tools write it for "not set".

    Problems go into one list for the whole file, so that the user mends them in one go.
    """

    def __init__(self, content: Mapping[str, Any], problems: list[str], path: str = "") -> None:
        """Args: path: what stands before the object's keys in messages, such as `vision_config.`."""
        self.content = {key: value for key, value in content.items() if value is not None}
        self.problems = problems
        self._path = path
        self._asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands; its key counts as read."""
        self._asked.add(key)
        return self.content.get(key, default)

    def section(self, key: str) -> "Section":
        """The object under a key; absent, an empty one."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            self.problem(f"{key} must be an object, found {value!r:.80}")
            value = {}
        return Section(value, self.problems, f"{self._path}{key}.")

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER
    ) -> int:
        return self.checked_integer(key, self.get(key, default), minimum, maximum)

    def checked_integer(self, key: str, value: object, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """As `integer`, of a value that was found otherwise."""
        if is_whole(value) and value >= minimum:
            if value <= maximum:
                return value
            self.problem(f"{key} must be at most {maximum}, found {value!r:.80}")
            return minimum
        self.problem(f"{key} must be an integer of at least {minimum}, found {value!r:.80}")
        return minimum

    def number(self, key: str, default: float, minimum: float = 0.0) -> float:
        """A number above zero that no sensible product overflows, and at least `minimum`."""
        value = self.get(key, default)
        if is_number(value) and 0 < value <= MAX_NUMBER and value >= minimum:
            return float(value)
        expected = f"a number of at least {minimum:g}" if minimum else "a positive number"
        if isinstance(value, int | float) and value > MAX_NUMBER:
            expected += f" of at most {MAX_NUMBER:g}"
        self.problem(f"{key} must be {expected}, found {value!r:.80}")
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if isinstance(value, bool):
            return value
        self.problem(f"{key} must be true or false, found {value!r:.80}")
        return default

    def one_of(self, key: str, allowed: Iterable[Any]) -> None:
        """Hold a value, where there is one, to those that are computed."""
        choices = list(allowed)
        value = self.get(key, choices[0])
        if value not in choices:
            self.problem(f"{key} is {value!r}, not {' or '.join(map(str, choices))}")

    def problem(self, text: str) -> None:
        self.problems.append(self._path + text)

    def unread(self) -> set[str]:
        """Keys that hold something and that nobody asked for."""
        return self.content.keys() - self._asked

    def asked(self) -> set[str]:
        """Keys that were asked for, there or not."""
        return set(self._asked)
