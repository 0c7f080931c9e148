"""Configuration: the options of a mount, and the Arvados settings."""
