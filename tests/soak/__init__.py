"""The seeded random soak: a fleet under a storm of faults, and the invariants checked after it. `make soak`."""
