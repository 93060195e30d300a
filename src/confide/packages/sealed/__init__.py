"""Sealed models: encrypted for a key, signed by their owner, opened into memory and nowhere else."""
