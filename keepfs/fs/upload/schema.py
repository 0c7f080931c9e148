"""The schema of the catalog's database, version by version."""

#: What each version adds to the one before; a catalog of an older version is brought up to
#: date when it is opened.
MIGRATIONS = (
    """
    CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE entries (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        parent INTEGER NOT NULL,
        name BLOB NOT NULL,
        mode INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        atime_ns INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        size INTEGER NOT NULL,
        content BLOB NOT NULL,
        UNIQUE (parent, name)
    );
    """,
    # Spill records whose file has been stored or removed since.
    "CREATE TABLE obsolete_spills (name TEXT PRIMARY KEY) WITHOUT ROWID;",
    # Since then `content` may count equal blocks: an older keepfs can't read that.
    "",
    # Files with a block that can't be read any more.
    "CREATE TABLE lost (number INTEGER PRIMARY KEY, reason TEXT NOT NULL);",
    # Since then `content` may have parts of blocks: an older keepfs would take whole ones.
    "",
)
