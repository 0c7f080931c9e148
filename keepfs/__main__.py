"""`python -m keepfs`: the command line, where the `keepfs` script isn't on the path."""

from keepfs.cli import main

main()
