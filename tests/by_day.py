"""Which cases of a test that is marked `sampled(k)` run by day; all the others are nightly."""


def runs_by_day(case: int, k: int, in_turn: bool = False) -> bool:
    """Every k-th; with `in_turn=True` one of each k in a row, every time at another place.

    So where each thing is tried in k dtypes, each thing and each dtype has its case by day.
    """
    row, place = divmod(case, k)
    return (place + row * in_turn) % k == 0
