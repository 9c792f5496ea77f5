"""The whole fault list, with real processes: `make faults`."""
