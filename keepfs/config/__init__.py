"""What the user set: the options of a mount, and Arvados's own settings."""
