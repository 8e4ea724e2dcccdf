"""What lies in the stores: the format, how it is read, and what is decided about it."""
