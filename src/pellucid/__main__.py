"""The ``pellucid`` command, also as ``python -m pellucid``."""

import _signal as signal  # `signal` itself takes milliseconds to import, in which Ctrl-C may come

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the program at once until `main` begins: while modules are imported, the exception
    # that it would raise can be lost in their C code.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import os

# Before OpenMP is loaded, which reads it once: its threads wait for each other in every layer, and by
# default they do so by running in circles. Where another program has one of the cores, a step then
# takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Looking for unused objects every 700 new ones takes a tenth of the time in which torch is imported.
gc.set_threshold(100_000, 20)

from pellucid.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
