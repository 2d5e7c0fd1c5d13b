"""A mark for tests that need isolation: they skip where the machine offers none, and say why."""

from __future__ import annotations

import pytest
from thinkrl.rewards.sandbox import isolation_level

LEVEL = isolation_level()
needs_isolation = pytest.mark.skipif(
    LEVEL.startswith("none"), reason=f"this machine offers no isolation: {LEVEL}"
)
