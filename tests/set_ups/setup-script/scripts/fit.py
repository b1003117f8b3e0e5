import json
import pathlib
import sys

import blobs

ROOT = pathlib.Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    steps = json.loads((ROOT / "configs" / f"{sys.argv[1]}.json").read_text())["steps"]
    pathlib.Path("checkpoints").mkdir(exist_ok=True)
    pathlib.Path("checkpoints", "last.txt").write_text(str(steps))
    print(blobs.name(), "for", steps, "steps")
