"""Programs whose pictures say how they were made: one file each.

Such a file has ``PROGRAM``, the name of the program, ``matches(texts)``, whether the texts of a
picture are its own, and ``read(texts)``, its `RecordedSettings` without the program's name. A
ValueError of `read` says why they cannot be read.
"""
