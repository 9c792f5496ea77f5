"""How fast Gistmill summarizes: its engines and the whole system beside every peer, in one run."""
