"""Room for scoring; no torch."""
