"""A training loop in PyTorch's shape, which goes on where its last attempt ended.

`Linear` and `SGD` stand for `torch.nn.Linear` and `torch.optim.SGD`, so that this runs without PyTorch. A loop with
PyTorch saves and loads the same `state_dict`s, by `torch.save` and `torch.load` instead of `json`.
"""

from __future__ import annotations

import json
import os
import time

from prefect_launch.inputs import load_config, log_metrics, output_dir, save_outputs

POINTS = [(n / 10, 3 * n / 10 + 1) for n in range(10)]


class Linear:
    """A model with one weight and one bias."""

    def __init__(self) -> None:
        self.state = {"weight": 0.0, "bias": 0.0}

    def state_dict(self) -> dict[str, float]:
        return self.state

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.state = state


class SGD(Linear):
    """Gradient descent with momentum; its state is what it remembers of earlier steps."""

    def step(self, model: Linear, gradient: dict[str, float], lr: float) -> None:
        for name, slope in gradient.items():
            self.state[name] = 0.9 * self.state[name] + slope
            model.state[name] -= lr * self.state[name]


config = {"epochs": 40, "lr": 0.02, **load_config()}
checkpoint = output_dir() / "checkpoint.json"  # A retry finds here what its last attempt has left.
model, optimizer, done = Linear(), SGD(), 0
print(f"process {os.getpid()}, attempt {os.environ.get('LAUNCH_ATTEMPT', '1')}", flush=True)
if checkpoint.exists():
    saved = json.loads(checkpoint.read_text())
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    print(f"resumed after epoch {(done := saved['epoch'])}", flush=True)
for epoch in range(done + 1, config["epochs"] + 1):
    errors = [(x, model.state["weight"] * x + model.state["bias"] - y) for x, y in POINTS]
    optimizer.step(model, {"weight": sum(x * e for x, e in errors), "bias": sum(e for _, e in errors)}, config["lr"])
    time.sleep(0.25)  # Stands for the work of an epoch.
    log_metrics(step=epoch, loss=sum(e**2 for _, e in errors))
    print(f"epoch {epoch} loss {sum(e**2 for _, e in errors):.6f}", flush=True)
    partial = checkpoint.with_suffix(".partial")  # Then in one step: a kill leaves the last whole checkpoint.
    state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    partial.write_text(json.dumps(state))
    partial.replace(checkpoint)
save_outputs(epochs=config["epochs"], resumed_after=done)
