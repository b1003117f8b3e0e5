"""Command of a child flow run: a short program that fetches the wrapper from the Prefect server, and runs it.

A worker starts it as it is, so it must be short (ECS takes 8 KB of overrides) and hold nothing of the run. What it runs
is in the run's plan, which the server hands over as an input of the flow run. All that it needs is a `python3` of 3.8
or later.
"""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Final

from prefect_launch.core import masking

#: The input that holds the run's plan.
PLAN_KEY: Final = "launch-plan"
#: The interpreter, where the queue's owner names no other.
PYTHON: Final = "python3"

#: Without comments, since every worker keeps it with its run.
_BOOTSTRAP: Final = """\
import json, os, sys, time, types
if sys.version_info < (3, 8):
    sys.exit("prefect-launch: Python 3.8 or later is needed, and this is " + sys.version.split()[0])
missing = [name for name in ("PREFECT_API_URL", "PREFECT__FLOW_RUN_ID") if not os.environ.get(name)]
if missing:
    sys.exit("prefect-launch: the worker has not set " + " and ".join(missing))
import base64, ssl, urllib.request
env, headers = os.environ, {}
if env.get("PREFECT_API_KEY"):
    headers["Authorization"] = "Bearer " + env["PREFECT_API_KEY"]
elif env.get("PREFECT_API_AUTH_STRING"):
    headers["Authorization"] = "Basic " + base64.b64encode(env["PREFECT_API_AUTH_STRING"].encode()).decode()
headers.update(json.loads(env.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}"))
tls = ssl.create_default_context(cafile=env.get("PREFECT_API_SSL_CERT_FILE") or env.get("SSL_CERT_FILE"))
if env.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on"):
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
url = "{}/flow_runs/{}/input/launch-plan".format(env["PREFECT_API_URL"].rstrip("/"), env["PREFECT__FLOW_RUN_ID"])
absent = 0
for tries in range(120):
    try:
        request = urllib.request.Request(url, headers=headers)
        plan = json.loads(urllib.request.urlopen(request, timeout=60, context=tls).read())
        break
    except (OSError, ValueError) as error:
        own = getattr(error, "code", 0) == 404 and b'"Flow run' in error.read()
        absent = absent + 1 if own else 0
        if absent == 12 or tries == 119:
            sys.exit("prefect-launch: no plan of this run at %s: %s" % (url, error))
        time.sleep(min(5, 0.5 + tries))
for name, source in plan["program"]:
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
sys.exit(module.main(plan, sys.modules["wrapper_api"].Api()))
"""


def child_command(python: str = PYTHON) -> str:
    """Return the command of a child flow run, as a shell writes it.

    Args:
        python: the interpreter, as the image or the worker's machine knows it.
    """
    return shlex.join([python, "-u", "-c", _BOOTSTRAP])


@cache
def program() -> list[tuple[str, str]]:
    """Return the wrapper's modules with their sources, in the order in which they are loaded."""
    folder = Path(__file__).parent
    files = (Path(masking.__file__), folder / "wrapper_api.py", folder / "wrapper.py")
    return [(file.stem, file.read_text(encoding="utf-8")) for file in files]


def plan_text(plan: dict[str, Any]) -> str:
    """Return the input that the command reads: the plan of a run and the wrapper."""
    return json.dumps({**plan, "program": program()})
