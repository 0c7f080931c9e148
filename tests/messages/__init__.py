"""Tests of the registry of messages, and of each message."""
