"""What a loss may be made of: functions written as formulas, sums that rows share, what becomes of rows, penalties."""
