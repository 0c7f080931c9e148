"""Compiles the C extension of keepfs while a wheel is built, or says why it can't.

The extension is optional: without it keepfs is slower and works all the same. It uses
Python's stable interface, so one file serves every Python from 3.11 on, and so it can lie
in a source tree that several environments use.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HERE = Path("keepfs/keep/hashing")
_SOURCES = ("_md5.c", "md5_streams.c")
#: The tag of the stable interface; the name of a file that any such Python loads.
_ABI, _FILE = "cp311-abi3", "_md5.abi3.so"
#: GCC would put two streams into vector registers, which halves the speed.
_FLAGS = ("-std=c11", "-O2", "-fno-tree-slp-vectorize", "-fPIC", "-shared", "-pthread")


class ExtensionHook(BuildHookInterface[Any]):
    """Adds the extension to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile the extension, and mark the wheel as one for this platform."""
        folder = Path(self.root) / _HERE
        reason = compile_extension(folder)
        if reason:
            self.app.display_warning(f"keepfs hashes with hashlib alone, no C extension: {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"{_ABI}-{platform}"
        build_data["artifacts"].append(f"/{_HERE / _FILE}")


def compile_extension(folder: Path, *flags: str) -> str:
    """Compile the extension in the folder of its sources.

    Args:
        folder: The folder.
        flags: Added to those of the compiler.

    Returns:
        Why that failed; empty if it did not.
    """
    target = folder / _FILE
    new = target.with_suffix(f".{os.getpid()}")  # a process may load the other
    command = [
        *shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"),
        *_FLAGS,
        *flags,
        *shlex.split(os.environ.get("CFLAGS", "")),
        f"-I{sysconfig.get_path('include')}",
        *(str(folder / name) for name in _SOURCES),
        *("-o", str(new)),
    ]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
        new.rename(target)
    except FileNotFoundError:
        return f"there is no {command[0]}"
    except (OSError, subprocess.CalledProcessError) as error:
        new.unlink(missing_ok=True)
        return str(getattr(error, "stderr", "") or error)
    return ""
