"""The file system: trio tasks that never block and never speak HTTP."""
