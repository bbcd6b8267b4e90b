"""One script a claim in docs/benchmarks.md; each takes --data and prints a table."""
