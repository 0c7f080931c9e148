"""Test vectors of the Keep protocol, as they were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "transcripts" / "vectors.json").read_text()
)
