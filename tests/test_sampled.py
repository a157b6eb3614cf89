"""Which cases of a long list run by day."""

from by_day import runs_by_day


def test_every_kth_runs_by_day() -> None:
    assert [case for case in range(10) if runs_by_day(case, 3)] == [0, 3, 6, 9]


def test_in_turn_each_thing_and_each_dtype_has_its_case() -> None:
    for dtypes in (2, 3, 4):
        cases = [(thing, dtype) for thing in range(7) for dtype in range(dtypes)]
        chosen = [case for number, case in enumerate(cases) if runs_by_day(number, dtypes, in_turn=True)]
        assert [thing for thing, _ in chosen] == list(range(7))
        assert {dtype for _, dtype in chosen} == set(range(dtypes))
