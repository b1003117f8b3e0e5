"""Train a small network on scikit-learn's hand-written digits with the parameters of one trial of a sweep.

An ordinary program: `load_config()` gives it the parameters of its trial, and `log_metrics()` tells after each epoch
how good it is. It knows nothing of the sweep.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from prefect_launch.inputs import load_config, log_metrics

DEFAULTS = {"hidden_units": 32, "learning_rate": 0.01, "activation": "relu", "epochs": 15}


def main() -> None:
    """Train, and report each epoch."""
    config = {**DEFAULTS, **load_config()}
    images, labels = load_digits(return_X_y=True)
    # The images that choose the best trial, which none of them has trained on.
    train_images, other_images, train_labels, other_labels = train_test_split(
        images / 16.0, labels, test_size=0.25, random_state=0, stratify=labels
    )
    network = MLPClassifier(
        hidden_layer_sizes=(config["hidden_units"],),
        activation=config["activation"],
        learning_rate_init=config["learning_rate"],
        random_state=0,
    )
    for epoch in range(config["epochs"]):
        network.partial_fit(train_images, train_labels, classes=np.arange(10))
        log_metrics(step=epoch, accuracy=network.score(other_images, other_labels), loss=network.loss_)


if __name__ == "__main__":
    main()
