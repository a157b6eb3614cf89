"""The one error for wrong use: what was expected, what came, what is near it, why it happened, how to repair it."""

from collections.abc import Sequence


class UsageError(Exception):
    """Wrong use or unreadable input; the command line ends with exit code 2.

    Parameters
    ----------
    expected, got : what the function needs and what it was given
    cause : the reason, as far as it follows from what came; "" where it does not, and the line is left out
    repair : what to type or change
    near : names that look like the one that came

    Examples
    --------
    >>> print(UsageError("a file", "nothing", "a typing mistake", "check the path"))
    expected: a file
    got:      nothing
    cause:    a typing mistake
    repair:   check the path
    """

    on_every_rank = False  # whether all ranks of a job raise the same one, so that one of them is enough to say it

    def __init__(self, expected: str, got: str, cause: str, repair: str, near: Sequence[str] = ()) -> None:
        super().__init__(expected, got, cause, repair)
        self.expected, self.got, self.cause, self.repair, self.near = expected, got, cause, repair, tuple(near)

    @property
    def parts(self) -> dict[str, str]:
        """Its lines by name, in their order; those that say nothing are not among them."""
        near = ", ".join(self.near)
        parts = {"expected": self.expected, "got": self.got, "near": near, "cause": self.cause, "repair": self.repair}
        return {name: text for name, text in parts.items() if text or name in ("expected", "got", "repair")}

    def __str__(self) -> str:
        lines = self.parts.items()
        return "\n".join(f"{name + ':':<10}" + text.replace("\n", "\n" + " " * 10) for name, text in lines)
