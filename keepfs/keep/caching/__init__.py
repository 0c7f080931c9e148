"""The block cache: eviction, fetches in progress, and the locators that may be answered."""
