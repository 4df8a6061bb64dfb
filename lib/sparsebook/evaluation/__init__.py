"""Statistics, timing, the machine's limits, and metrics."""
