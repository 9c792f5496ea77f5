"""Checkpoints on disk: names, manifests, digests, atomic publish. No torch."""
