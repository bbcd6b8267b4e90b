"""What moved a score, how surely, and in words a clinician reads."""
