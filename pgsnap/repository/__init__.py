"""What lies in the stores: the format, how it is read, and what is decided about it. It never writes more than a mark.

To read: ``manifest``, ``catalog``, ``blocks`` and ``source`` (how a backup is read back), ``retention`` and ``guard`` (pure
functions); then ``store_set`` (several stores as one), ``lease``, ``object_lock``, ``recover``.
"""
