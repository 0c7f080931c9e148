"""Retention: the blocks of stored files are kept by the cluster, and stay readable."""
