"""Where the API server is and who we are: kubeconfig files, or the service account inside a cluster."""

import ssl
from pathlib import Path
from typing import Any

from memopod.kube.errors import ConfigurationError

_DEFAULT_NAMESPACE = "default"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


async def load(path: str | None, environ: dict[str, str]) -> Any:
    """A `kubernetes.aio` Configuration: from `path`, else $KUBECONFIG, else ~/.kube/config, else in-cluster.

    Exec plugins are run. Raises ConfigurationError.
    """
    # Imported by who needs it: the package takes 0.4 s, and half of our processes ask no API server.
    from kubernetes.aio.client.configuration import Configuration
    from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

    configuration = Configuration()
    files = _files(path, environ)
    try:
        if _any_exists(files):
            await load_kube_config(
                config_file=files, client_configuration=configuration, persist_config=False
            )
        elif path is not None:
            raise ConfigurationError(f"kubeconfig {path}: no such file")
        else:
            load_incluster_config(client_configuration=configuration)
    except ConfigException as error:
        raise ConfigurationError(
            f"cannot configure the Kubernetes client from {files} or a service account: {error}"
        ) from error
    return configuration


def default_namespace(path: str | None, environ: dict[str, str]) -> str:
    """The namespace to ask in where none is named, as kubectl has it: that of the current context; inside a
    cluster the Pod's own; else `default`. For a configuration that `load` accepts.
    """
    from kubernetes.aio.config import list_kube_config_contexts

    files = _files(path, environ)
    if _any_exists(files):
        _, current = list_kube_config_contexts(config_file=files)
        return str(current["context"].get("namespace") or _DEFAULT_NAMESPACE)
    return _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else _DEFAULT_NAMESPACE


def ssl_context(configuration: Any) -> ssl.SSLContext:
    """The TLS settings of a configuration: its CA, client certificate, and whether it verifies."""
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert, cadata=getattr(configuration, "ca_cert_data", None)
    )
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def authorization(configuration: Any) -> str | None:
    """The value of the Authorization header; a service account's token is read again once a minute."""
    settings = await configuration.auth_settings()
    token = settings.get("BearerToken")
    return str(token["value"]) if token and token["value"] else None


def _files(path: str | None, environ: dict[str, str]) -> str:
    return path or environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def _any_exists(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(":") if file)
