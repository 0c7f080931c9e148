"""collections/: the files of collections, read-only, through the same blocks as by_id/."""
