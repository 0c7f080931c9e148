"""The machine's configuration that this user may not read: it is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2]

#: Makes /etc in a mount namespace, with configuration that only root may read; then runs Python.
HIDDEN = """
mount -t tmpfs none /etc && mkdir -p -m 755 /etc/ssl/certs &&
mkdir -m 700 /etc/arvados /etc/keepfs &&
echo ARVADOS_API_HOST=hidden | tee /etc/arvados/settings.conf > /etc/keepfs/settings.conf &&
echo 'colour = 1' > /etc/keepfs/config.toml && touch /etc/arvados/ca-certificates.crt &&
touch /etc/ssl/certs/ca-certificates.crt && chmod "$1" /etc/arvados /etc/keepfs &&
chmod 600 /etc/*/*.* && mkdir -m 700 -p /etc/hidden/arvados && exec "$2" -c "$3"
"""

AS_USER = """
import logging, os
from pathlib import Path
from keepfs.config import arvados, options
logging.basicConfig(level=logging.DEBUG)
os.setgroups([])
os.setuid(54321)
print(repr(arvados.load_settings({}).api_host))
print(arvados.ca_file({}))
print(options.read_default_files())
for named in ({"XDG_CONFIG_HOME": "/etc/hidden"}, {"CONFIGURATION_DIRECTORY": "/etc/keepfs"}):
    try:
        print(arvados.load_settings(named))
    except PermissionError as error:
        print(error.filename)
try:
    print(arvados.ca_file({"SSL_CERT_FILE": "/etc/arvados/ca-certificates.crt"}))
except PermissionError as error:
    print(error.filename)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", ["700", "755"])
def test_the_machines_configuration_is_skipped_if_only_root_may_read_it(mode: str) -> None:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", HIDDEN, "sh", mode, sys.executable, AS_USER],
        capture_output=True,
        check=False,
        text=True,
        cwd=SOURCES,
        env={"PATH": os.defpath, "HOME": "/"},
        timeout=60,
    )
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)

    assert done.stdout.splitlines() == [
        "''",
        "/etc/ssl/certs/ca-certificates.crt",
        "{}",
        "/etc/hidden/arvados/settings.conf",  # what the user has chosen is not skipped
        "/etc/keepfs/settings.conf",
        "/etc/arvados/ca-certificates.crt",
    ], done.stderr
    for path in ("/etc/arvados/settings.conf", "/etc/keepfs/config.toml"):
        assert f"{path} is skipped: Permission denied" in done.stderr
