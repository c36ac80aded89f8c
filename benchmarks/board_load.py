"""Many readers at once: CLIENTS sessions of the leaderboard's app for SECONDS, each opening and changing views.

    python -m benchmarks.board_load [RESULTS …] [--clients 30] [--seconds 60]

A client speaks the protocol of Streamlit's page (WebSocket, protobuf): it asks for a view and waits until the script
has run to its end, ranks included, then reads for one to three seconds. Prints the waits, and the server's memory and
processor time: the waits are those of a machine that does nothing else, the time per view is that of any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from benchmarks.board_server import serving

VIEWS = (
    *(("", f"metric={metric}") for metric in ("nll", "ece", "acc", "brier", "all")),
    ("", "method=BLoB&method=MLE"),
    *((page, "") for page in ("papers", "calibration", "uncertainty", "draws", "cost", "items", "method", "submit")),
)


def connected(address: str) -> websockets.connect:
    return websockets.connect(f"ws://{address}/_stcore/stream", subprotocols=["streamlit"], max_size=None)


async def wait_for(session: websockets.ClientConnection, page: str, query: str) -> float:
    """Ask for a view; return the seconds until its script has run to the end."""
    message, start = BackMsg(), time.monotonic()
    message.rerun_script.page_name, message.rerun_script.query_string = page, query
    await session.send(message.SerializeToString())
    while True:
        answer = ForwardMsg.FromString(await session.recv())
        if answer.WhichOneof("type") == "script_finished" and answer.script_finished == 0:
            return time.monotonic() - start


async def first_visit(address: str) -> float:
    """See every view once, so that what is computed once is known; return the seconds for all of them."""
    async with connected(address) as session:
        return sum([await wait_for(session, page, query) for page, query in VIEWS])


async def client(address: str, seed: int, end: float, waits: list[tuple[str, float]]) -> None:
    choose = random.Random(seed)
    await asyncio.sleep(3 * choose.random())
    async with connected(address) as session:
        while time.monotonic() < end:
            page, query = choose.choice(VIEWS)
            waits.append((f"{page or 'table'}?{query}", await wait_for(session, page, query)))
            await asyncio.sleep(1 + 2 * choose.random())


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def busy(process: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(address: str, clients: int, seconds: float, process: int) -> tuple[list[tuple[str, float]], list[float]]:
    """Return the waits, and the memory at the start and at every quarter of the time."""
    waits, memory = list[tuple[str, float]](), [resident(process)]
    end = time.monotonic() + seconds
    tasks = [asyncio.create_task(client(address, seed, end, waits)) for seed in range(clients)]
    for _ in range(4):
        await asyncio.sleep(seconds / 4)
        memory.append(resident(process))
    await asyncio.gather(*tasks)
    return waits, memory


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args(arguments)
    with serving(given.results, UQHARNESS_LEADERBOARD_CACHE="") as (address, process):
        first, before = asyncio.run(first_visit(address)), busy(process)
        waits, memory = asyncio.run(load(address, given.clients, given.seconds, process))
        used = busy(process) - before
    times = np.array([wait for _, wait in waits])
    print(
        f"{given.clients} clients, {given.seconds:g} s: {len(times)} views, after a first visit of all in {first:.1f} s"
    )
    print("wait, s: " + ", ".join(f"p{q} {np.percentile(times, q):.2f}" for q in (50, 95, 99)))
    for view in sorted({name for name, _ in waits}):
        own = [wait for name, wait in waits if name == view]
        print(f"  {view:28} {len(own):4} views, median {np.median(own):.2f}, most {max(own):.2f}")
    print(f"server: {1000 * used / len(times):.0f} ms of processor time per view")
    print("memory, MiB: " + ", ".join(f"{value:.0f}" for value in memory))


if __name__ == "__main__":
    main()
