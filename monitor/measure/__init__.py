"""What the rows mean: pure functions of their arguments. No clock, no I/O, no global state."""
