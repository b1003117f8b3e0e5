"""The job's inputs: one class is the form in the UI, the check before anything is queued, and the types in the code.

Nothing of Prefect is needed here or in `train.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Inputs(BaseModel, extra="forbid"):
    """How the network is trained."""

    hidden_units: int = Field(64, ge=4, le=1024, description="Neurons of the hidden layer.")
    epochs: int = Field(20, ge=1, le=200, description="Passes over the training data.")
    activation: Literal["relu", "tanh", "logistic"] = Field("relu", description="Activation of the hidden layer.")
    learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of the optimiser (Adam).")
    test_fraction: float = Field(0.25, ge=0.1, le=0.5, description="Share of the images that is kept for the test.")
    seed: int = Field(0, ge=0, description="The same seed gives the same accuracy.")
