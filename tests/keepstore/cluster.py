"""Run a cluster of test services by hand: `python -m tests.keepstore.cluster DIR`.

Two keepstores that sign, and an API server over https. Writes DIR/ca.pem, the authority of its
certificate, and DIR/settings, shell assignments of HOST, TOKEN and OTHER_TOKEN, both of one
user. Serves until its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from tests.keepstore.apiserver import ApiSettings, ServiceEntry
from tests.keepstore.certificates import Authority
from tests.keepstore.controls import ApiControls, KeepstoreControls, Listening
from tests.keepstore.keepstore import TEST_TOKEN

_OTHER_TOKEN = f"v2/zzzzz-gj3su-{'2' * 15}/{'n' * 50}"


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    tls = Authority(directory).certify()
    settings = ApiSettings(tokens=(TEST_TOKEN, _OTHER_TOKEN))
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(KeepstoreControls()) for _ in range(2)]
        api = stack.enter_context(ApiControls(settings, listening=Listening(tls=tls)))
        api.list_services([ServiceEntry.of(each.url, n) for n, each in enumerate(stores)])
        new = directory / "settings.new"
        new.write_text(f"HOST={api.host}\nTOKEN={TEST_TOKEN}\nOTHER_TOKEN={_OTHER_TOKEN}\n")
        os.replace(new, directory / "settings")
        sys.stdin.read()


if __name__ == "__main__":
    main()
