"""One consistent dump: the snapshot that is held, what is taken inside it, and the lines that restore it without pgsnap."""
