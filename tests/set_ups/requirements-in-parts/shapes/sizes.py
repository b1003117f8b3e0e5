import csv


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [float(row["size"]) for row in csv.DictReader(file)]
