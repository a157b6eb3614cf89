"""What of models is measured once and ships as data: their noise, and which single edits a check sees."""
