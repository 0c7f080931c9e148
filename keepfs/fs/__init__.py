"""The file system: trio tasks that never block; no HTTP."""
