"""The SDK's names, signatures and duck types, as data: callers of its class can use ours.

The surface is that of the class as its reference documents it: `KeepClient` of
the Python SDK 2.x, from `__init__(..., session=None)` on.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple
from unittest import mock

import pytest

import keepfs.keep
from keepfs.keep import HttpError, KeepClient, KeepLocator, KeepRequestError
from keepfs.keep.retry import RetryLoop

REQUIRED: Any = inspect.Parameter.empty
DEFAULT_TIMEOUT = (2, 256, 32768)
DEFAULT_PROXY_TIMEOUT = (20, 256, 32768)

#: What the reference calls `**kwargs` of get and head: they are _get_or_head's.
_READ = {"loc_s": REQUIRED, "num_retries": None, "request_id": None, "headers": None}


class Surface(NamedTuple):
    """One method: its parameters in their order, with their defaults."""

    name: str
    parameters: dict[str, Any]
    is_static: bool = False


SURFACE = [
    Surface(
        "__init__",
        {
            "api_client": None,
            "proxy": None,
            "timeout": DEFAULT_TIMEOUT,
            "proxy_timeout": DEFAULT_PROXY_TIMEOUT,
            "api_token": None,
            "local_store": None,
            "block_cache": None,
            "num_retries": 0,
            "session": None,
        },
    ),
    Surface("current_timeout", {"attempt_number": REQUIRED}),
    Surface("_any_nondisk_services", {"service_list": REQUIRED}),
    Surface("build_services_list", {"force_rebuild": False}),
    Surface("_service_weight", {"data_hash": REQUIRED, "service_uuid": REQUIRED}),
    Surface(
        "weighted_service_roots",
        {"locator": REQUIRED, "force_rebuild": False, "need_writable": False},
    ),
    Surface(
        "map_new_services",
        {
            "roots_map": REQUIRED,
            "locator": REQUIRED,
            "force_rebuild": REQUIRED,
            "need_writable": REQUIRED,
            "headers": REQUIRED,
        },
    ),
    Surface("get_from_cache", {"loc": REQUIRED}),
    Surface("refresh_signature", {"loc": REQUIRED}),
    Surface("head", _READ),
    Surface("get", _READ),
    Surface(
        "_get_or_head",
        {
            "loc_s": REQUIRED,
            "method": "GET",
            "num_retries": None,
            "request_id": None,
            "headers": None,
        },
    ),
    Surface("put", {"data": REQUIRED, "copies": 2, "num_retries": None, "request_id": None}),
    Surface("local_store_put", {"data": REQUIRED, "copies": 1, "num_retries": None}),
    Surface("local_store_get", {"loc_s": REQUIRED, "num_retries": None}),
    Surface("local_store_head", {"loc_s": REQUIRED, "num_retries": None}),
    Surface("is_cached", {"locator": REQUIRED}),
    Surface("_check_loop_result", {"result": REQUIRED}, is_static=True),
]
CLASS_VARIABLES = {
    "DEFAULT_TIMEOUT": DEFAULT_TIMEOUT,
    "DEFAULT_PROXY_TIMEOUT": DEFAULT_PROXY_TIMEOUT,
}
NESTED_CLASSES = ["KeepService", "KeepWriterQueue", "KeepWriterThreadPool", "KeepWriterThread"]


def parameters_of(method: Surface) -> list[inspect.Parameter]:
    """List a method's parameters as they are with us, `self` left out."""
    ours = list(inspect.signature(getattr(KeepClient, method.name)).parameters.values())
    return ours if method.is_static else ours[1:]


@pytest.mark.parametrize("method", SURFACE, ids=lambda method: method.name)
def test_a_method_has_the_documented_parameters_in_order(method: Surface) -> None:
    ours = parameters_of(method)[: len(method.parameters)]

    assert {parameter.name: parameter.default for parameter in ours} == method.parameters
    assert [parameter.name for parameter in ours] == list(method.parameters)


@pytest.mark.parametrize("method", SURFACE, ids=lambda method: method.name)
def test_every_parameter_may_be_given_by_place_and_by_name(method: Surface) -> None:
    kinds = {parameter.kind for parameter in parameters_of(method)}

    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("method", SURFACE, ids=lambda method: method.name)
def test_a_parameter_of_our_own_is_optional(method: Surface) -> None:
    added = parameters_of(method)[len(method.parameters) :]

    assert all(parameter.default is None for parameter in added)


@pytest.mark.parametrize("method", SURFACE, ids=lambda method: method.name)
def test_a_method_is_static_only_where_it_is_documented_so(method: Surface) -> None:
    is_static = isinstance(inspect.getattr_static(KeepClient, method.name), staticmethod)

    assert is_static == method.is_static


@pytest.mark.parametrize(("name", "value"), CLASS_VARIABLES.items())
def test_a_class_variable_has_the_documented_value(name: str, value: object) -> None:
    assert getattr(KeepClient, name) == value


@pytest.mark.parametrize("name", NESTED_CLASSES)
def test_the_sdks_nested_classes_are_reached_by_their_path(name: str) -> None:
    assert inspect.isclass(getattr(KeepClient, name))


@pytest.mark.parametrize(
    "name",
    [
        "ArgumentError",
        "HttpError",
        "KeepBlockCache",
        "KeepCacheError",
        "KeepClient",
        "KeepLocator",
        "KeepReadError",
        "KeepRequestError",
        "KeepWriteError",
        "NoKeepServersError",
        "NotFoundError",
    ],
)
def test_the_package_exports_the_sdks_classes(name: str) -> None:
    assert name in keepfs.keep.__all__
    assert inspect.isclass(getattr(keepfs.keep, name))


def test_the_exports_of_the_package_are_sorted_and_complete() -> None:
    assert all(hasattr(keepfs.keep, name) for name in keepfs.keep.__all__)


@pytest.mark.parametrize("name", ["md5sum", "size", "hints", "perm_sig", "perm_expiry"])
def test_a_locator_has_the_sdks_attributes(name: str) -> None:
    assert hasattr(KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3"), name)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("stripped", {}),
        ("permission_hint", {}),
        ("permission_expired", {"as_of_dt": None}),
        ("__init__", {"locator_str": REQUIRED}),
    ],
)
def test_a_locator_has_the_sdks_methods(method: str, parameters: dict[str, Any]) -> None:
    ours = list(inspect.signature(getattr(KeepLocator, method)).parameters.values())[1:]

    assert {parameter.name: parameter.default for parameter in ours} == parameters


@pytest.mark.parametrize(
    ("error", "parameters"),
    [
        (HttpError, {"status_code": REQUIRED, "reason": REQUIRED}),
        (KeepRequestError, {"message": "", "request_errors": (), "label": "service"}),
    ],
)
def test_an_error_is_made_as_the_sdks(error: type, parameters: dict[str, Any]) -> None:
    ours = list(inspect.signature(error).parameters.values())[: len(parameters)]

    assert {parameter.name: parameter.default for parameter in ours} == parameters


def test_a_patched_sleep_reaches_the_waits_between_rounds() -> None:
    # Users of the SDK patch it so; it is patched here because that is what is tested.
    with mock.patch("time.sleep") as sleep:
        assert list(RetryLoop(2)) == [0, 1, 2]

    assert sleep.call_count == 2


def test_another_kind_of_cache_is_refused_by_name() -> None:
    class Other:
        pass

    with pytest.raises(TypeError, match=r"block_cache is a tests\..*Other: give a keepfs\.keep"):
        KeepClient(local_store="/nowhere", block_cache=Other())  # type: ignore[arg-type]
