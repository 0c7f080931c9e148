"""Test servers that answer as Keep's do: keepstore, keepproxy, API server.

They are real servers on 127.0.0.1, in a thread of the test (cheap) or in a
process of their own (nothing shared with the client, for benchmarks). Both are
steered by the same calls, those of `KeepstoreControls` and its like:

    with KeepstoreControls() as store:                       # in a thread
        ...
    with start_process(KeepstoreControls) as store:          # in a process
        locator = store.store_block(b"foo")                  # signed for TEST_TOKEN
        requests.get(f"{store.url}/{locator}", headers={"Authorization": f"Bearer {TEST_TOKEN}"})

        store.script(Fault(status=503), Fault(close=Stage.BEFORE_STATUS), method="PUT")
        store.always(Fault(drop_headers=("X-Keep-Storage-Classes-Confirmed",)), method="PUT")
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET", target=locator[:32])
        store.wait_held(2)                                   # two GETs wait now
        store.release()                                      # let them go on

        store.corrupt(locator[:32], position=-1)             # spoil the stored bytes
        store.configure(max_requests=0, max_queued=0)        # busy: 503 to everything
        store.go_down(); store.come_back()                   # connection refused, same port
        store.cut_connections()                              # kept-alive ones too, once
        store.is_intact(locator[:32])                        # whole, right bytes on a volume

        [entry] = store.log("PUT")                           # headers, body_md5, connection ...
        store.counts(); store.most_under_way("PUT"); store.wait_begun(3, "PUT")

A keepproxy stands in front of keepstores, and an API server lists services:

    settings = ProxySettings(stores=[Store("zzzzz-bi6l4-000000000000001", store.url)])
    with KeepproxyControls(settings) as proxy: ...

    authority = Authority(tmp_path)                          # authority.bundle: what to trust
    listening = Listening(tls=authority.certify())
    with ApiControls(listening=listening) as api:            # api.host: for ARVADOS_API_HOST
        api.list_services([ServiceEntry.of(store.url, 1)], [])   # this time, from now on
        api.script(Fault(status=502), target="accessible")
        api.configure(storage_classes={"hot": {"Default": True, "Priority": 1}})

It keeps collections too, and a collector trashes what none of them names:

    settings = ApiSettings(signature_ttl=5, projects={"zzzzz-j7d0g-000000000000001": Project()})
    collector = Collector(api, [store, ...])
    collector.collect()                                      # once; or again and again:
    with collector.running(interval=1): ...

`refusing_port` and `silent_port` are services that can't be reached.

`Settings` has the configuration (signing, key, TTL, limits), `Volume` the
volumes (storage classes, replication, read-only, capacity), `Listening` port,
TLS and buffer sizes, `Fault` everything that can go wrong with an exchange.
Times are read from a clock that `time_ns` or `set_clock` stops.
"""

from tests.keepstore.apiserver import ApiSettings, Project, ServiceEntry, portable_data_hash
from tests.keepstore.certificates import Authority
from tests.keepstore.collector import Collector
from tests.keepstore.controls import (
    ApiControls,
    Controls,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
)
from tests.keepstore.faults import Fault, Stage
from tests.keepstore.journal import Entry
from tests.keepstore.keepproxy import ProxySettings, Store
from tests.keepstore.keepstore import MANAGEMENT_TOKEN, ROOT_TOKEN, TEST_KEY, TEST_TOKEN, Settings
from tests.keepstore.ports import refusing_port, silent_port
from tests.keepstore.processes import start_process
from tests.keepstore.volumes import Volume

__all__ = [
    "MANAGEMENT_TOKEN",
    "ROOT_TOKEN",
    "TEST_KEY",
    "TEST_TOKEN",
    "ApiControls",
    "ApiSettings",
    "Authority",
    "Collector",
    "Controls",
    "Entry",
    "Fault",
    "KeepproxyControls",
    "KeepstoreControls",
    "Listening",
    "Project",
    "ProxySettings",
    "ServiceEntry",
    "Settings",
    "Stage",
    "Store",
    "Volume",
    "portable_data_hash",
    "refusing_port",
    "silent_port",
    "start_process",
]
