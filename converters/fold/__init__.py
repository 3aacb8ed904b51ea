"""Fold parts of a memory layer into its tables (spec §4)."""
