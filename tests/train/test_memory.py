from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from addis.study import Task, executor
from tests.study.trials import Point, memory

PROGRAM = """
import json
from tests.study.trials import Point, memory
print(json.dumps(memory(Point(0))))
"""
KEEP = "from addis.train import keep_freed_memory\nkeep_freed_memory()\n"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="a setting of glibc, read by its mallinfo2",
)


def alone(program: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_freed_memory_is_used_again_without_the_kernel():
    found = alone(KEEP + PROGRAM)
    assert found["mapped"] == 0
    assert found["kept"] >= 64 << 20
    assert alone(PROGRAM)["mapped"] >= 24 << 20


def test_studies_compute_in_processes_that_keep_it():
    ((_, outcome),) = executor("processes", workers=1)([Task("0", memory, Point(0))])
    assert outcome.values["mapped"] == 0
    assert outcome.values["kept"] >= 64 << 20
