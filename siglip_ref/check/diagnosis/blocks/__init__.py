"""What a loss over ranks computes: who met whom, with which weight, and whose gradient lies with whom."""
