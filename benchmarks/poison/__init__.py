"""What one dialogue that kills every worker costs the rest of a fleet: `make bench-poison`."""
