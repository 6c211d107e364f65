"""For all tests: Ctrl-C works in the processes they start, also where the tests themselves run in the background."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would every child
