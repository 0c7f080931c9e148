"""Programs that catch the SDK's errors or read the SDK's attributes work with KeepClient."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep import (
    ArgumentError,
    Cause,
    HttpError,
    KeepBlockCache,
    KeepCacheError,
    KeepClient,
    KeepReadError,
    KeepRequestError,
    KeepWriteError,
    NoKeepServersError,
    NotFoundError,
)
from keepfs.keep.services.api import ApiError
from tests.keep.clusters import Cluster
from tests.keepstore import TEST_TOKEN, KeepproxyControls, ProxySettings, Store

if TYPE_CHECKING:
    from pathlib import Path

OURS = (
    *(KeepRequestError, KeepReadError, KeepWriteError, KeepCacheError, NotFoundError),
    *(NoKeepServersError, ArgumentError),
)
MISSING = f"{'0' * 32}+3"


@pytest.fixture
def sdk() -> Any:  # noqa: ANN401 - a module without types
    """The SDK's errors, loaded."""
    return pytest.importorskip("arvados.errors")


@pytest.mark.parametrize("ours", OURS, ids=lambda it: it.__name__)
def test_an_error_is_the_sdks_too(ours: type[Exception], sdk: Any) -> None:  # noqa: ANN401
    theirs = getattr(sdk, ours.__name__)

    with pytest.raises(theirs, match="text") as caught:
        raise ours("text")

    assert isinstance(caught.value, ours)
    assert type(caught.value).__name__ == ours.__name__
    assert type(caught.value).__module__ == ours.__module__


def test_either_class_has_the_errors_of_the_services(sdk: Any) -> None:  # noqa: ANN401
    said = {"http://a/": HttpError(404, "Not Found")}

    with pytest.raises(sdk.NotFoundError) as caught:
        raise NotFoundError("foo not found", said, cause=Cause.NOT_FOUND)

    assert str(caught.value) == "foo not found: service http://a/ responded with 404 Not Found"
    assert caught.value.message == "foo not found"
    assert caught.value.request_errors() == said
    assert isinstance(said["http://a/"], sdk.HttpError)
    assert (said["http://a/"].status_code, said["http://a/"].reason) == (404, "Not Found")


def test_such_an_error_can_be_copied_and_pickled(sdk: Any) -> None:  # noqa: ANN401
    error = NotFoundError("foo", {"a": HttpError(404, "x")}, cause=Cause.DENIED)

    for twin in (copy.copy(error), error.fresh(), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert isinstance(twin, sdk.NotFoundError)
        assert (str(twin), twin.cause) == (str(error), Cause.DENIED)


def test_other_errors_of_the_sdks_names_stay_ours(sdk: Any) -> None:  # noqa: ANN401
    assert not isinstance(ApiError(0, "x", Cause.OTHER), sdk.ApiError)


def test_a_client_raises_what_a_program_for_the_sdk_catches(sdk: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with KeepClient(local_store=tmp_path) as client, pytest.raises(sdk.KeepReadError):
        client.get(MISSING)


def test_the_sdk_is_not_needed_nor_loaded() -> None:
    code = (
        "import sys; from keepfs.keep import *\n"
        "assert type(KeepReadError('x')) is KeepReadError\n"
        "assert not [it for it in sys.modules if it.startswith('arvados')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- attributes ---------------------------------------------------------------------------------


def test_attributes_of_a_client_of_keepstores() -> None:
    with Cluster(1) as cluster:
        client = cluster.client(timeout=(1, 2, 3))
        before = (client.using_proxy, client.max_replicas_per_service)
        client.build_services_list()

        assert before == (None, None)
        assert (client.using_proxy, client.max_replicas_per_service) == (False, 1)
        assert [client.timeout, client.proxy_timeout] == [(1, 2, 3)] * 2
        assert not client.insecure


def test_attributes_of_a_client_of_a_proxy() -> None:
    with Cluster(1) as cluster:
        store = Store("zzzzz-bi6l4-000000000000000", cluster.stores[0].url)
        with (
            KeepproxyControls(ProxySettings(stores=[store])) as proxy,
            KeepClient(proxy=proxy.url, api_token=TEST_TOKEN, local_store="") as client,
        ):
            assert client.using_proxy is True
            assert client.max_replicas_per_service is None
            assert client.proxy_timeout == KeepClient.DEFAULT_PROXY_TIMEOUT


def test_attributes_of_a_client_of_a_directory(tmp_path: Path) -> None:
    with KeepClient(local_store=tmp_path) as client:
        assert (client.using_proxy, client.insecure) == (None, False)
        assert client.timeout == KeepClient.DEFAULT_TIMEOUT


def test_a_cache_takes_the_sdks_arguments(tmp_path: Path) -> None:
    cache = KeepBlockCache(
        cache_max=0, max_slots=10, disk_cache=True, disk_cache_dir=str(tmp_path)
    )

    assert cache.statistics().maxsize == KeepBlockCache().statistics().maxsize
    on_disk = KeepBlockCache(1 << 30, 10, True, tmp_path)  # noqa: FBT003 - as the SDK's
    assert on_disk.disk is not None  # the size is then that of the disk, as in the SDK
    assert on_disk.statistics().maxsize == KeepBlockCache().statistics().maxsize
    in_memory = KeepBlockCache(1 << 20, 10, False, None)  # noqa: FBT003 - ditto
    assert in_memory.statistics().maxsize == 1 << 20


def test_get_or_head_takes_its_method_by_name(tmp_path: Path) -> None:
    with KeepClient(local_store=tmp_path) as client:
        locator = client.put(b"foo")

        assert client._get_or_head(locator, method="HEAD") is True  # noqa: SLF001
        assert client._get_or_head(locator, method="GET") == b"foo"  # noqa: SLF001


@pytest.mark.parametrize("data", [{}, None, 3, ["a"], object()])
def test_data_of_a_wrong_type_is_refused_with_a_reason(data: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with KeepClient(local_store=tmp_path) as client:
        for copies in (0, 1):
            with pytest.raises(TypeError, match=f"a block is bytes.* not {type(data).__name__}"):
                client.put(data, copies=copies)


def test_the_constructor_has_the_documented_parameters() -> None:
    client = importlib.import_module("keepfs.keep.client")
    assert client.KeepClient.__init__.__code__.co_varnames[:10] == (
        *("self", "api_client", "proxy", "timeout", "proxy_timeout", "api_token"),
        *("local_store", "block_cache", "num_retries", "session"),
    )
