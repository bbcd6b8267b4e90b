"""Models: what is learned, how it is checked, and how it lies on disk."""
