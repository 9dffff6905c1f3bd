"""The ``pellucid`` command, also as ``python -m pellucid``."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the program at once until `main` begins: while modules are imported, the exception
    # that it would raise can be lost in their C code.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pellucid.cli import main

if __name__ == "__main__":
    main()
