from __future__ import annotations

import subprocess
import sys

import pytest

from addis.study import Task, executor
from tests.study.trials import Point, faults

FAULTS = "from tests.study.trials import Point, faults\nprint(faults(Point(0))['faults'])"
KEEP = "from addis.train import keep_freed_memory\nkeep_freed_memory()\n"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's glibc")


def alone(program: str) -> int:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_used_again_without_the_kernel():
    assert alone(KEEP + FAULTS) < 100
    assert alone(FAULTS) > 1000


def test_studies_compute_in_processes_that_keep_it():
    ((_, outcome),) = executor("processes", workers=1)([Task("0", faults, Point(0))])
    assert outcome.values["faults"] < 100
