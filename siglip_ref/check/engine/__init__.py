"""The one way in which everything is checked: run, compare, try other conventions, explain, count, report."""
