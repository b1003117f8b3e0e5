import pathlib
import sys

import acme_core
import toolz

print(acme_core.VERSION, toolz.__version__, pathlib.Path("settings.ini").read_text().strip(), *sys.argv[1:])
