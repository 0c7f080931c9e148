"""Connect: build the parts of a client of Keep services from arguments and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keepfs.config.arvados import load_settings
from keepfs.keep.http.exchange import Exchanges
from keepfs.keep.services.api import ApiClient, verify_setting
from keepfs.keep.services.discovery import Services
from keepfs.keep.services.remote import RemoteStore
from keepfs.keep.services.roster import Defaults, Roster

if TYPE_CHECKING:
    import requests

    from keepfs.keep.counters import Counters
    from keepfs.keep.services.remote import Parts


def connect(
    parts: Parts,
    counters: Counters,
    api_client: Any,  # noqa: ANN401 - anything that acts like the SDK's
    proxy: str | None,
    api_token: str | None,
    session: requests.Session | None,
) -> tuple[RemoteStore, Any, bool]:
    """Build a store over services; sends no request.

    Args:
        parts: The classes of its parts.
        counters: The client's counters.
        api_client: Finds the services; None: made from the settings.
        proxy: Base URLs of services that replace discovery; None: from the settings.
        api_token: Replaces the token of the settings if `api_client` is None.
        session: Provides adapters, TLS and proxy settings; None: the defaults.

    Returns:
        The store; the API client that finds the services, or None; whether certificate
        checks are disabled.

    Raises:
        ArgumentError: The addresses of the services are unknown, or a proxy isn't a URL.
    """
    settings = load_settings()
    if proxy is None:
        proxy = settings.keep_services or settings.keep_proxy
    fixed = Services.of_uris(proxy) if proxy.split() else None
    if api_client is None and fixed is None:
        api_client = ApiClient.of_settings(settings, api_token)
    token: Any = settings.api_token if api_token is None else api_token
    insecure = settings.insecure
    if api_client is not None:
        token, insecure = api_client.api_token, bool(api_client.insecure)
    store = RemoteStore(
        Roster(api_client, fixed),
        Defaults(api_client),
        Exchanges(verify_setting(insecure=insecure), session),
        counters,
        parts,
        token if isinstance(token, str) else "",
    )
    return store, api_client, insecure
