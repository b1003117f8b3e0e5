import six

VERSION = f"core on {six.__version__}"
