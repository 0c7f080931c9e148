"""One mount as a process: composition, serving, run files, signals, logs and shutdown."""
