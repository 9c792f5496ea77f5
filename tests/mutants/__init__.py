"""Each clause of docs/invariants.md broken once in a copy of the tree: a test must notice."""
