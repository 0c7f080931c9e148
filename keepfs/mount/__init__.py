"""One mount as a process: composed, served, found again by other processes, and ended."""
