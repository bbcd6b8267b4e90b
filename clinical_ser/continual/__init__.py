"""Models that go on learning without their old data."""
