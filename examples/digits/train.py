"""Train a small neural network on scikit-learn's hand-written digits: 1 797 real images of 8 x 8 pixels.

An ordinary program: its config comes in with `load_config()`, what it prints is its log, and what it hands to
`save_outputs()` is shown with the run. Every file in `output_dir()` is kept.
"""

from __future__ import annotations

import csv
import time

import numpy as np
from inputs import Inputs
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from prefect_launch.inputs import load_config, output_dir, save_outputs

DIGITS = np.arange(10)


def main() -> None:
    """Train, report each epoch, save the results."""
    inputs = Inputs(**load_config())
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16.0, labels, test_size=inputs.test_fraction, random_state=inputs.seed, stratify=labels
    )
    print(f"{len(train_images)} images to train on, {len(test_images)} to test on; {inputs}", flush=True)
    network = MLPClassifier(
        hidden_layer_sizes=(inputs.hidden_units,),
        activation=inputs.activation,
        learning_rate_init=inputs.learning_rate,
        random_state=inputs.seed,
    )
    started = time.monotonic()
    for epoch in range(1, inputs.epochs + 1):
        network.partial_fit(train_images, train_labels, classes=DIGITS)
        accuracy = network.score(test_images, test_labels)
        print(f"epoch {epoch:3d}/{inputs.epochs}  loss {network.loss_:.4f}  accuracy {accuracy:.4f}", flush=True)
    write_confusion(test_labels, network.predict(test_images))
    save_outputs(
        accuracy=round(accuracy, 4),
        loss=round(network.loss_, 5),
        train_seconds=round(time.monotonic() - started, 2),
        test_images=len(test_images),
    )


def write_confusion(truth: np.ndarray, predicted: np.ndarray) -> None:
    """Write which digit was taken for which, a row for each true digit."""
    with (output_dir() / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true", *DIGITS])
        for digit, row in zip(DIGITS, confusion_matrix(truth, predicted, labels=DIGITS), strict=True):
            writer.writerow([digit, *row])


if __name__ == "__main__":
    main()
