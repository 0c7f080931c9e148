"""The disk tier of the block cache: verified blocks in files, shared by a user's processes."""
