"""MD5 of blocks while they arrive: by a C extension for several at once, or by hashlib."""
