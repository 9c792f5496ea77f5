"""Readers for dataset files: validation with line numbers, row selection."""
