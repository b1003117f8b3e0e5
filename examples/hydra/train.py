"""A Hydra program with a config group: it prints its config, and a loss that shrinks with each epoch."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Train as the config says."""
    print(OmegaConf.to_yaml(config), flush=True)
    loss = float(sum(config.model.layers))
    for epoch in range(1, config.epochs + 1):
        loss *= 1 - config.optimizer.lr
        print(f"epoch {epoch}/{config.epochs}  {config.optimizer.name}  loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
