"""The audit trail: every answer leaves a record that cannot be changed, lost, or read by those who should not."""
