"""The one error for wrong use reads well wherever it lands: in a terminal, in pytest, in another process."""

import pickle

from siglip_ref.errors import UsageError

ERROR = UsageError("a file", "these:\na\nb", "a typing mistake", "check the path")


def test_each_part_has_its_line_and_longer_ones_stay_in_their_column() -> None:
    assert str(ERROR).splitlines() == [
        "expected: a file",
        "got:      these:",
        "          a",
        "          b",
        "cause:    a typing mistake",
        "repair:   check the path",
    ]


def test_it_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(ERROR))
    assert isinstance(again, UsageError)
    assert (again.expected, again.got, again.cause, again.repair) == ERROR.args


def test_what_follows_from_nothing_is_left_out_and_what_is_near_has_a_line() -> None:
    error = UsageError("a size", "'tine'", "", "tiny", near=["tiny"])
    assert str(error).splitlines() == ["expected: a size", "got:      'tine'", "near:     tiny", "repair:   tiny"]
    assert pickle.loads(pickle.dumps(error)).near == ("tiny",)
