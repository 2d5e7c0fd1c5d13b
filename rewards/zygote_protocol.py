"""What the grader and the zygote agree on; read on both sides of the sandbox."""

from __future__ import annotations

import struct

REPLY = struct.Struct("<icdQ?")  # wait status, cause, wall seconds, peak bytes, scratch is dirty
ENDED, OUT_OF_TIME, OUT_OF_MEMORY, CANCELLED = b"E", b"T", b"M", b"C"
