"""How far correct programs lie from the exact values: measured, and shipped."""
