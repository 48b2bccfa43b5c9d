"""Every module can be imported where Python lacks what only Unix has: Windows has a wheel, too."""

import subprocess
import sys
from typing import Final

IMPORTS: Final = """
import importlib, pkgutil, sys, types
import bss_stream

found = pkgutil.walk_packages(list(bss_stream.__path__), "bss_stream.")
names = [one.name for one in found if not one.name.endswith("__main__")]
# The libraries know their system; what is ours is made to believe that it is another one.
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.startswith("bss_stream")]:
    if not name.endswith("._engine"):
        del sys.modules[name]
for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios", "tty", "uvloop"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.ModuleType("msvcrt")
sys.platform = "win32"
for name in names:
    importlib.import_module(name)
print(len(names), "fcntl" in vars(sys.modules["bss_stream.log.sqlite_file"]))
"""


def test_every_module_is_imported_without_what_only_unix_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    modules, unix = done.stdout.split()
    assert int(modules) > 60
    assert unix == "False"
