"""Options that several commands share."""

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from siglip_ref.errors import UsageError
from siglip_ref.process.outputs import require_free

Force = Annotated[bool, typer.Option("--force", help="replace files of the same names")]

MAY_BE_EMPTY = ("--prefix",)


def require_words(argv: Sequence[str]) -> None:
    """Refuse empty words: as a path, one would be the folder where the command runs.

    >>> require_words(["siglip-ref", "train", "--out", "run"])
    """
    for before, word in pairwise(argv):
        if (not word and before not in MAY_BE_EMPTY) or (
            word.startswith("--") and word.endswith("=") and word[:-1] not in MAY_BE_EMPTY
        ):
            raise UsageError(
                expected="a value for every option, and no empty word",
                got=word or f'"" after {before}',
                cause="a variable of the shell that is not set",
                repair="write the value, or leave the option out",
            )


def as_command(
    run: Callable[..., None], parameters: Sequence[inspect.Parameter], like: Callable[..., object]
) -> Callable[..., None]:
    """What takes its options by name, as a command with these parameters, called and described as another."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = like.__name__, like.__doc__
    return run


def no_overwriting(
    files: str = "", folders: str = "", inputs: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the option --force; without it the outputs that these options name must not be there.

    files, folders : names of options, separated by blanks; "-" as a value is standard output
    inputs : names of what is read, "file.py:name" among them, and never replaced
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        parameter = inspect.Parameter("force", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Force)

        def guarded(*, force: bool = False, **given: Any) -> None:
            def named(names: str) -> list[Path]:
                return [Path(given[name]) for name in names.split() if given[name] not in (None, "-")]

            read = [str(path) for path in named(inputs)]
            read += [path.rpartition(":")[0] for path in read]
            require_free(named(files), named(folders), force, map(Path, filter(None, read)))
            command(**given)

        return as_command(guarded, [*signature.parameters.values(), parameter], command)

    return decorate
