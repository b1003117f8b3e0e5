"""Fit a line to noisy points by gradient descent: a plain argparse script, which knows nothing of its launcher."""

from __future__ import annotations

import argparse
import random


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lr", type=float, default=0.1, help="Step size.")
    parser.add_argument("--epochs", type=int, default=10, help="Passes over the points.")
    parser.add_argument("--shuffle", action="store_true", help="Take the points in another order each time.")
    args = parser.parse_args()

    points = [(n / 100, 3 * n / 100 + 1 + random.gauss(0, 0.1)) for n in range(100)]
    slope = offset = 0.0
    for epoch in range(1, args.epochs + 1):
        if args.shuffle:
            random.shuffle(points)
        loss = 0.0
        for x, y in points:
            error = slope * x + offset - y
            slope -= args.lr * error * x
            offset -= args.lr * error
            loss += error**2 / len(points)
        print(f"epoch {epoch}/{args.epochs}  lr {args.lr}  loss: {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
