"""Where data come from: two sets that are made here, or files of your own."""

import os
from pathlib import Path

from siglip_ref.errors import UsageError, near
from siglip_ref.training.data.captioned import Data


def open_data(name: str) -> Data:
    """The data called "shapes" or "digits", or of a folder of captioned images, or of a captions.csv.

    Examples
    --------
    >>> from siglip_ref.training.data.captioned import STILL
    >>> open_data("shapes").test.caption(0, STILL)
    'a small white triangle at the middle right'
    """
    if name == "shapes":
        from siglip_ref.training.data.shapes import shapes

        return shapes()
    if name == "digits":
        from siglip_ref.training.data.digits import digits

        return digits()
    if not name or not os.path.exists(name):
        alike = near(name, ("shapes", "digits"))
        raise UsageError(
            expected="--data shapes, digits, a folder of captioned images, or a captions.csv",
            got=repr(name),
            cause="it is none of the two names, and there is nothing at this path",
            repair=f"--data {alike[0]}" if alike else "check the path",
            near=alike,
        )
    from siglip_ref.training.data.files import from_files

    return from_files(Path(name))
