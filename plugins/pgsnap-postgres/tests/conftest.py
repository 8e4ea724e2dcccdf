"""All fixtures come from pgsnap_postgres.testing, where the tests of the core and of other packages find them too.

pytest takes plugins from the top-level conftest.py only, so it is named there.
"""

from __future__ import annotations

import signal

# A shell that starts the tests by & or nohup has them ignore these, and so would every process that a test means to stop.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)
