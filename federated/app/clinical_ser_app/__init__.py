"""The Flower app of clinical-ser: names only, no code of its own."""
