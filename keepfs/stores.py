"""Stores: make and check the Keep client of a mount or a command."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from keepfs.collections.remote_collections import RemoteCollections
from keepfs.config.arvados import load_settings
from keepfs.keep.buffers import BufferPool
from keepfs.keep.caching.cache import KeepBlockCache
from keepfs.keep.caching.disk.opening import disk_cache_of
from keepfs.keep.client import KeepClient
from keepfs.keep.errors import ArgumentError, Cause, KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.services.api import ApiClient, ApiError
from keepfs.keep.services.discovery import Services
from keepfs.keep.survey import survey
from keepfs.messages import of_stores
from keepfs.messages.message import MessageError
from keepfs.renewing_store import token_source, where_from

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.config.arvados import Settings
    from keepfs.config.options import StoreOptions

_log = logging.getLogger(__name__)

#: Replicas of each block if the cluster has no default.
DEFAULT_COPIES = 2
#: Seconds that a service may take to answer the check at the start. Guessed.
_CHECK_TIMEOUT = 10.0
_REFUSALS = frozenset({401, 403})

#: The locator of a block that doesn't exist. A request for it shows which services answer.
_NOBODYS = KeepLocator("0" * 32 + "+1")


class StoreError(MessageError):
    """The store can't be used; the message is one line: why, and what to do."""


def identity(options: StoreOptions) -> str:
    """Return a name of the store, recorded with saved data; empty for a list of addresses."""
    if options.local_store is not None:
        return f"local:{options.local_store.resolve()}"
    settings = load_settings()
    if options.keep_services or settings.keep_services or settings.keep_proxy:
        return ""  # a list of addresses, which may change
    return f"cluster:{settings.api_host}"


def knows_api() -> bool:
    """Return whether Arvados's own settings name an API server."""
    return bool(load_settings().api_host)


def open_api(options: StoreOptions, token: str) -> ApiClient | None:
    """Make a client of the API server; None with a local store, or if no setting names one.

    The caller closes it.

    Args:
        options: Where the blocks are.
        token: The API token.

    Raises:
        ArgumentError: The server's address can't be used.
    """
    settings = load_settings()
    if options.local_store is not None or not settings.api_host:
        return None
    return api_of(settings, token)


def api_of(settings: Settings, token: str | None = None) -> ApiClient:
    """Make a client of the API server that Arvados's settings name.

    The messages name the options of commands, unlike those of `ApiClient.of_settings`.

    Args:
        settings: They name an API server.
        token: Replaces the token of the settings, unless None.

    Raises:
        ArgumentError: There is no token, or the server's address can't be used.
    """
    if not (settings.api_token if token is None else token):
        raise ArgumentError(of_stores.NO_TOKEN())
    return ApiClient.of_settings(settings, token)


@contextlib.contextmanager
def open_client(
    options: StoreOptions, buffers: BufferPool | None = None, patience: float = 0.0
) -> Iterator[KeepClient]:
    """Make a client, and close it and its disk cache at exit; sends no request.

    Args:
        options: The options of the store.
        buffers: A shared memory pool for whole blocks; None: a pool of its own.
        patience: Seconds that a fetch waits for the disk cache; else its block is not kept there.

    Raises:
        ArgumentError: The options and Arvados's settings lack the addresses of
            the services or the token.
        OSError: The token file can't be read.
    """
    with contextlib.ExitStack() as stack:
        disk = disk_cache_of(options, patience)
        if disk is not None:
            stack.callback(disk.close)
        cache = KeepBlockCache(
            max(1, options.cache_size),  # 0 would be the default
            allocate=(buffers or BufferPool()).allocate,
            disk=disk,
        )
        if options.local_store is not None:
            client = KeepClient(local_store=options.local_store, block_cache=cache)
        else:
            token = None if options.token_file is None else _token_in(options.token_file)
            _check_addresses(options, token)
            client = KeepClient(
                proxy=options.keep_services,
                api_token=token,
                local_store="",
                block_cache=cache,
                num_retries=options.retries,
            )
        yield stack.enter_context(client)


@contextlib.contextmanager
def open_collections(identity: str, token_file: Path | None) -> Iterator[RemoteCollections]:
    """Open the collections of a mount's cluster, for one command, without a request.

    Args:
        identity: The result of `identity` for the mount's store: a cluster, or empty.
        token_file: The file of the token; None for Arvados's own settings.

    Raises:
        StoreError: The settings name another cluster than the mount's, or no API server.
        OSError: The token file can't be read.
    """
    settings = load_settings()
    wanted = f"cluster:{settings.api_host}"
    if not settings.api_host:
        raise StoreError(
            of_stores.NEEDS_API_SERVER(what="collections need an API server", otherwise="")
        )
    if identity not in {"", wanted}:
        raise StoreError(
            of_stores.OTHER_CLUSTER(
                cluster=identity.partition(":")[2],
                host=settings.api_host,
                source=settings.origin("ARVADOS_API_HOST"),
            )
        )
    api = api_of(settings, None if token_file is None else _token_in(token_file))
    with contextlib.closing(api):
        yield RemoteCollections(api)


def check_services(client: KeepClient, options: StoreOptions) -> None:
    """Check that the token is valid and a service answers, or that a local store can be read.

    Blocks. Creates a missing local store. Logs a warning if a proxy refuses the token.

    Raises:
        StoreError: A check failed; the message names the settings to look at.
    """
    if options.local_store is not None:
        _check_readable(options.local_store)
        return
    where = where_from(options)
    try:
        unanswered = _verify_token(client, options)
        if unanswered is not None:
            raise StoreError(of_stores.API_UNREACHABLE(reason=unanswered, settings=where))
        check_classes(client, options)
        client.build_services_list(force_rebuild=True)
        sightings = survey(client, _NOBODYS, _CHECK_TIMEOUT)
    except KeepRequestError as error:
        raise StoreError(of_stores.SETUP_FAILED(reason=error, settings=where)) from error
    if not sightings:
        raise StoreError(
            of_stores.SETUP_FAILED(reason="the cluster lists no Keep services", settings=where)
        )
    if not any(each.status for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        raise StoreError(of_stores.NO_SERVICE_ANSWERS(answers=said, settings=where))
    if all(each.is_proxy and each.status in _REFUSALS for each in sightings):
        said = "; ".join(f"{each.root}: {each.reason}" for each in sightings)
        # Not an error: it may be a token that allows uploads only.
        _log.warning("%s", of_stores.PROXY_REFUSES(answers=said, settings=where))


def check_token(client: KeepClient, options: StoreOptions) -> None:
    """Check that the API server accepts the token; skip this if none answers. Blocks.

    keepstore doesn't check the token of a PUT: with a wrong one it stores the block
    and signs a locator that can't be used.

    Raises:
        StoreError: The API server refuses the token.
    """
    if options.local_store is None:
        _verify_token(client, options)


def check_classes(client: KeepClient, options: StoreOptions) -> None:
    """Check that the cluster has the requested storage classes, if it lists any. Blocks.

    Raises:
        StoreError: A class doesn't exist.
    """
    if options.storage_classes is None or options.local_store is not None:
        return
    known = client.storage_classes()
    unknown = sorted(set(options.storage_classes) - known)
    if known and unknown:
        raise StoreError(
            of_stores.NO_STORAGE_CLASS(name=unknown[0], known=", ".join(sorted(known)))
        )


def copies_of(client: KeepClient, options: StoreOptions) -> int:
    """Return the replicas of a block to confirm: the option, else the cluster's default, else 2.

    Blocks. A local store stores one.
    """
    if options.local_store is not None:
        return 1
    return options.copies or client.default_copies() or DEFAULT_COPIES


def _check_addresses(options: StoreOptions, token: str | None) -> None:
    """Check the settings that the client of a cluster needs, with messages for commands.

    Raises:
        ArgumentError: An address of a service isn't a URL, or the API server needs a token.
    """
    settings = load_settings()
    addresses, setting = settings.keep_proxy, settings.origin("ARVADOS_KEEP_PROXY")
    if options.keep_services is not None:
        addresses = options.keep_services
        setting = f"--keep-services from {options.keep_services_from or 'the caller'}"
    elif settings.keep_services:
        addresses, setting = settings.keep_services, settings.origin("ARVADOS_KEEP_SERVICES")
    if addresses.split():
        try:
            Services.of_uris(addresses)
        except ArgumentError as error:
            said = of_stores.BAD_SERVICES(setting=setting, reason=error)
            raise ArgumentError(said) from error
    elif settings.api_host:
        api_of(settings, token).close()


def _check_readable(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except OSError as error:
        raise StoreError(of_stores.LOCAL_STORE_FAILED(path=path, reason=error.strerror)) from error


def _verify_token(client: KeepClient, options: StoreOptions) -> ApiError | None:
    """Check the token at the API server; return the error if it can't be reached, else None.

    Raises:
        StoreError: The API server refuses the token.
    """
    settings = load_settings()
    if options.keep_services or settings.keep_services or settings.keep_proxy:
        return None  # no API server is configured
    api = api_of(settings, client.api_token)
    try:
        api.users().current().execute()
    except ApiError as error:
        if error.status_code == 403:  # noqa: PLR2004 - a scoped token may be good for Keep alone
            _log.warning("%s", of_stores.USER_UNKNOWN(reason=error))
            return None
        if error.cause is Cause.DENIED:
            said = of_stores.TOKEN_REFUSED(source=token_source(options), reason=error)
            raise StoreError(said) from error
        return error
    finally:
        api.close()
    return None


def _token_in(path: Path) -> str:
    token = path.read_text(errors="replace").strip()
    if not token:
        raise ArgumentError(f"the token file {path} is empty")
    return token
