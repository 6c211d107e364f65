"""Importing without looking for garbage; in a process of its own, as it changes what pytest has."""

import subprocess
import sys

PROGRAM = """
import gc
from depthdist.core.imports import importing
found = []
gc.callbacks.append(lambda phase, info: found.append(phase))
with importing():
    import xml.dom.minidom, unittest.mock
    many = [[] for _ in range(5000)]
assert not found, found
assert gc.isenabled() and gc.get_freeze_count() > 5000
gc.disable()
kept = gc.get_freeze_count()
more = [[] for _ in range(5000)]
with importing():
    import xml.dom.minidom
assert gc.get_freeze_count() <= kept, "nothing was imported"
assert not gc.isenabled()
print("done")
"""


def test_no_garbage_is_looked_for_while_libraries_are_imported_and_then_as_before():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
