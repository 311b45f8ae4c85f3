"""From records and kept posteriors to pictures."""
