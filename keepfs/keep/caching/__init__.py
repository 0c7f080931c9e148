"""Blocks in memory: the cache, its eviction, fetches under way, and which names may have them."""
