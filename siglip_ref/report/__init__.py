"""What a check found: rows, a verdict, findings, as text, HTML and JSON."""
