"""Kubernetes login: which cluster an agent speaks to and as whom, from its kubeconfig or from its pod.

A kubeconfig (`KUBECONFIG`, or `~/.kube/config`) comes before the service account of a pod. Tokens, certificates and
exec plugins are read anew whenever a login is loaded: a token that was renewed in its file is found.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from prefect_launch.errors import AgentConfigError, clause

#: Stands for the pod's own cluster where a context is named: as in no kubeconfig that `kubectl` writes.
POD_CONTEXT: Final = "(this pod)"
_IN_POD: Final = "KUBERNETES_SERVICE_HOST"
_POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
#: What an exec plugin, which may ask a cloud, gets to answer.
_LOGIN_SECONDS: Final = 60.0


class Login(NamedTuple):
    """A way into a cluster.

    Attributes:
        configuration: the client package's: address, certificates, token.
        context: its name in the kubeconfig, or `POD_CONTEXT`.
        namespace: that jobs are in whose queue names none.
        origin: where it was read, for messages.
        connection: what connections are made with; another one needs new connections.
    """

    configuration: Any
    context: str
    namespace: str
    origin: str
    connection: tuple[object, ...]

    @property
    def host(self) -> str:
        """The address of the API server."""
        return str(self.configuration.host)

    @property
    def authorization(self) -> str:
        """The header `Authorization`; empty where a certificate says who calls."""
        return str(self.configuration.api_key.get("BearerToken", "")).strip()

    @property
    def identity(self) -> tuple[object, ...]:
        """Who calls: another one may be let in where this one is not."""
        return self.authorization, *self.connection


async def load_login(context: str = "") -> Login:
    """Read the login of this machine or pod.

    Args:
        context: of the kubeconfig, or `POD_CONTEXT`; empty: the current one, or the pod's own cluster.

    Raises:
        AgentConfigError: when there is none, or it cannot be read; it says what to do.
    """
    try:
        with anyio.fail_after(_LOGIN_SECONDS):
            return await anyio.to_thread.run_sync(_load, context, abandon_on_cancel=True)
    except TimeoutError:
        raise AgentConfigError(
            f"The login to Kubernetes was not there after {_LOGIN_SECONDS:g} s. Run the exec plugin of the kubeconfig"
            " by hand, and see what it waits for."
        ) from None


def _load(context: str) -> Login:
    try:
        from kubernetes_asyncio.client import Configuration
    except ImportError:
        raise AgentConfigError(
            "Kubernetes needs its client kubernetes-asyncio, which is not installed here. Install it with: pip install"
            " 'prefect-launch[kubernetes]'."
        ) from None
    configuration = Configuration()
    # Each log that is followed is a connection of its own: the package's 100 would be all taken by logs.
    configuration.connection_pool_maxsize = 0
    if context == POD_CONTEXT:
        return _from_pod(configuration)
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    files = [path for path in paths.split(os.pathsep) if path and Path(path).exists()]
    if files:
        return _from_files(configuration, os.pathsep.join(files), context)
    if context:
        raise AgentConfigError(
            f"The queue names the context {context!r}, and this agent has no kubeconfig: {paths} is not there. Set"
            " KUBECONFIG, or take the context out of the queue's config."
        )
    if os.environ.get(_IN_POD):
        return _from_pod(configuration)
    raise AgentConfigError(
        f"This agent knows no Kubernetes cluster: {paths} is not there, and it does not run in a pod. Set KUBECONFIG to"
        " a kubeconfig, and try it with: kubectl get jobs."
    )


def _from_files(configuration: Any, files: str, context: str) -> Login:
    from kubernetes_asyncio.config import list_kube_config_contexts, load_kube_config

    try:
        contexts, current = list_kube_config_contexts(files)
        named = {str(one["name"]): one.get("context") or {} for one in contexts}
        chosen = context or str((current or {}).get("name", ""))
        if chosen not in named:
            raise AgentConfigError(
                f"The kubeconfig {files} has no context {chosen!r}. It has: {', '.join(sorted(named)) or 'none'}."
                " Correct the queue's config, or the kubeconfig."
            )
        # In this thread there is no loop yet; the package runs exec plugins on one.
        asyncio.run(
            load_kube_config(
                config_file=files, context=chosen, client_configuration=configuration, persist_config=False
            )
        )
    except AgentConfigError:
        raise
    except Exception as error:
        raise AgentConfigError(
            f"The kubeconfig {files} cannot be used: {clause(error) or type(error).__name__}. Try it with: kubectl get"
            " jobs."
        ) from error
    namespace = str(named[chosen].get("namespace") or "default")
    return Login(configuration, chosen, namespace, f"context {chosen} of {files}", _connection(configuration))


def _from_pod(configuration: Any) -> Login:
    from kubernetes_asyncio.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(client_configuration=configuration, try_refresh_token=False)  # type: ignore[no-untyped-call]
        namespace = _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError) as error:
        raise AgentConfigError(
            f"The service account of this agent's pod cannot be read: {clause(error)}. Run it in a pod that mounts its"
            " token (automountServiceAccountToken)."
        ) from error
    origin = "service account of this pod"
    return Login(configuration, POD_CONTEXT, namespace or "default", origin, _connection(configuration))


def _connection(configuration: Any) -> tuple[object, ...]:
    files = [configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file]
    changed = [os.stat(file).st_mtime_ns for file in files if file]
    values = [configuration.host, configuration.verify_ssl, configuration.tls_server_name, configuration.proxy]
    return (*values, *files, *changed)
