"""One subject over time."""
