"""Generator of `fields.json`: the fields of the Kubernetes API's objects, read from the models of kubernetes_asyncio.

Run it with a newer kubernetes_asyncio to learn newer fields:

    python scripts/kubernetes_fields.py > prefect_launch/runners/remote/kubernetes/fields.json
"""

from __future__ import annotations

import inspect
import json
import re
import sys

from kubernetes_asyncio.client import models

#: What people write themselves; all that these hold is followed.
_ROOTS = (
    *("V1ConfigMap", "V1Deployment", "V1Job", "V1PersistentVolumeClaim", "V1Pod", "V1PodTemplateSpec", "V1Secret"),
    *("V1Service", "V1StatefulSet"),
)
_REQUIRED = re.compile(r"Invalid value for `(\w+)`, must not be `None`")


def field_table() -> dict[str, dict[str, str]]:
    """Return the types of all fields by the name of the type that has them; a required one ends with `!`."""
    table: dict[str, dict[str, str]] = {}
    waiting = list(_ROOTS)
    while waiting:
        name = waiting.pop()
        if name in table:
            continue
        model = getattr(models, name)
        required = set(_REQUIRED.findall(inspect.getsource(model)))
        table[name] = {
            model.attribute_map[attribute]: kind + ("!" if attribute in required else "")
            for attribute, kind in model.openapi_types.items()
            if not (attribute == "status" and name in _ROOTS)
        }
        waiting += [found for kind in table[name].values() for found in re.findall(r"[A-Z]\w+", kind)]
    return dict(sorted(table.items()))


if __name__ == "__main__":
    json.dump(field_table(), sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")
