"""The one error for wrong use: what was expected, what came, why it probably happened, how to repair it."""


class UsageError(Exception):
    """Wrong use or unreadable input; the command line ends with exit code 2.

    Parameters
    ----------
    expected, got : what the function needs and what it was given
    cause : the likely reason
    repair : what to type or change

    Examples
    --------
    >>> print(UsageError("a file", "nothing", "a typing mistake", "check the path"))
    expected: a file
    got:      nothing
    cause:    a typing mistake
    repair:   check the path
    """

    on_every_rank = False  # whether all ranks of a job raise the same one, so that one of them is enough to say it

    def __init__(self, expected: str, got: str, cause: str, repair: str) -> None:
        super().__init__(expected, got, cause, repair)
        self.expected, self.got, self.cause, self.repair = expected, got, cause, repair

    def __str__(self) -> str:
        parts = {"expected": self.expected, "got": self.got, "cause": self.cause, "repair": self.repair}
        return "\n".join(f"{name + ':':<10}" + text.replace("\n", "\n" + " " * 10) for name, text in parts.items())
