"""What changed between two checkpoints, as something that travels: after sparse fine-tuning, a few rows of a table."""
