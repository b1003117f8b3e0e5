import six


def name():
    return f"blobs on {six.__version__}"
