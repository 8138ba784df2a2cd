"""Command-line parameter types that several commands share."""

import click


def default_target() -> str:
    """The target that needs nothing but qv-export itself."""
    from engines.backends import default_backend

    return default_backend().name


class TargetChoice(click.Choice[str]):
    """The name of a backend. Asked of the registry when it is needed, so that every command knows a new one."""

    def __init__(self, *, with_reference: bool = False) -> None:
        """`with_reference`: also the targets that only the validator has."""
        self._with_reference = with_reference
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        """Every name, in the registry's order."""
        from engines.backends import BACKENDS

        if self._with_reference:
            from validate.reference.targets import REFERENCE_TARGETS

            return (*BACKENDS, *REFERENCE_TARGETS)
        return tuple(BACKENDS)

    @choices.setter
    def choices(self, _value: tuple[str, ...]) -> None:
        """Click sets what it was made with, which is nothing."""
