import json

import six

print("lr", json.load(open("params.json"))["fit"]["lr"], six.__version__)
