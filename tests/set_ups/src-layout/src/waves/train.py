import sys

import toolz

if __name__ == "__main__":
    print("waves at", sys.argv[1], "with", toolz.__version__)
