"""The version of keepfs, and nothing else."""

__version__ = "0.1.0"
