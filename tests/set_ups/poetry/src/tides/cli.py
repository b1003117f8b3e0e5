import argparse

import six


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=int, default=1)
    print("tides of", parser.parse_args().days, "days on", six.__name__)
