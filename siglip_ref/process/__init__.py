"""What a process has to itself: signals, memory, threads, files written whole."""
