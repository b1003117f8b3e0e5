import os
import pathlib
import sys

ROOT = next(folder for folder in pathlib.Path(__file__).resolve().parents if (folder / ".project-root").exists())
sys.path.insert(0, str(ROOT))
os.environ["PROJECT_ROOT"] = str(ROOT)

import hydra  # noqa: E402

from src import models  # noqa: E402


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(config):
    found = sorted(path.name for path in pathlib.Path(config.data_dir).iterdir())
    print("fit", models.describe(config), "seed", config.seed, *found, flush=True)


if __name__ == "__main__":
    main()
