"""One thread alone calls torch.

Each thread that does gets a team of OpenMP threads. Where all teams together are more than the processors, OpenMP puts
them to sleep after every kernel, and waking them takes as long as a short kernel.
"""

import subprocess
import sys
from pathlib import Path

NANO = Path(__file__).parents[3] / "models" / "nano-embed"

_COUNT = """
import asyncio, os, sys
import torch
from services.engine.engine import EmbedEngine
from services.engine.types import EngineSettings

def threads():
    return len(os.listdir("/proc/self/task"))

async def embed(engine):
    engine.start()
    await engine.embed(["chaff and wheat"] * 3)
    print(threads())
    torch.ones(1 << 20).add_(1)  # large enough for all threads
    print(threads())
    await engine.drain()
    engine.close()

asyncio.run(embed(EmbedEngine.load(EngineSettings(sys.argv[1], threads=4))))
"""


def test_the_thread_that_loads_and_serves_has_no_team() -> None:
    told = subprocess.run([sys.executable, "-c", _COUNT, NANO], check=True, capture_output=True, text=True, timeout=120)
    with_engine, with_ours = map(int, told.stdout.split())
    assert with_ours == with_engine + 3, "the main thread had a team already: it, or an import, has called torch"
