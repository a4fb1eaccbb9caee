"""The service under load: `/score` with 1, 8 and 32 clients, by the load generator wrk, beside scoring one by one.

    python benchmarks/serving.py SCORER [POOL.jsonl] [--seconds 30] [--out results.json]

A request has the 12 first candidates of an example of the pool, the next request those of the next. `wrk` (a package
of most distributions) runs on the same machine and takes its share of it. "One by one" is `Cappy.score` in one process
without HTTP, an example after the other, for as long. The memory of the service is read before and after each load.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from side_by_side import machine

from cappy_lightning import Cappy
from cappy_lightning.files import write_json
from cappy_lightning.progress import say
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
CANDIDATES, CLIENTS = 12, (1, 8, 32)

#: Sends the bodies of a file in turn, and says what came.
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local bodies, sent = {}, 0
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
request = function()
  sent = sent + 1
  return wrk.format(nil, "/score", nil, bodies[(sent - 1) % #bodies + 1])
end
done = function(summary, latency)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99),
    summary.errors.status, lost))
end
"""


def load(url: str, folder: Path, clients: int, seconds: int) -> dict[str, float]:
    """Requests a second, latencies in milliseconds, and failures."""
    environment = os.environ | {"BODIES": str(folder / "bodies")}
    script = str(folder / "script.lua")
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", script, url]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    match = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", said)
    assert match, said
    count, duration, *percentiles, bad, broken = map(int, match.groups())
    names = ("median", "p95", "p99")
    return {
        "requests_per_second": count / (duration / 1e6),
        **{name: value / 1e3 for name, value in zip(names, percentiles, strict=True)},
        "failed": bad + broken,
    }


def one_by_one(scorer: str, pools: list[Pool], seconds: int) -> dict[str, float]:
    """The same requests without a service."""
    cappy = Cappy.from_pretrained(scorer)
    times: list[float] = []
    for pool in itertools.cycle(pools):
        if sum(times) > 1e3 * seconds:
            break
        begin = time.perf_counter()
        cappy.score([(pool.example.instruction, one.response) for one in pool.candidates[:CANDIDATES]])
        times.append(1e3 * (time.perf_counter() - begin))
    cuts = statistics.quantiles(times, n=100)
    return {
        "requests_per_second": 1e3 * len(times) / sum(times),
        "median": statistics.median(times),
        "p95": cuts[94],
        "p99": cuts[98],
        "failed": 0,
    }


def resident(process: int) -> float:
    """Memory of a process, in MiB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found
    return int(found[1]) / 1024


def main() -> None:
    """Start the service, load it, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer")
    parser.add_argument("pool", nargs="?", type=Path, default=QUICKSTART)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed")
    pools = read_labelled_pools([options.pool])
    results: dict[str, Any] = {"one by one": one_by_one(options.scorer, pools, options.seconds)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.lua").write_text(SCRIPT)
        rows = [
            [{"instruction": pool.example.instruction, "response": c.response} for c in pool.candidates[:CANDIDATES]]
            for pool in pools
        ]
        (folder / "bodies").write_text("".join(json.dumps({"pairs": pairs}) + "\n" for pairs in rows))
        words = ["serve", "--scorer", options.scorer, "serve.port=0", "backbone.kind=openai"]
        words.append("backbone.url=http://127.0.0.1:9")  # nobody is asked
        service = subprocess.Popen([sys.executable, "-m", "cappy_lightning", *words], stderr=subprocess.PIPE, text=True)
        assert service.stderr
        try:
            line = next(line for line in service.stderr if line.startswith("serving on"))
            url = line.split()[2].removesuffix("/v1,")
            load(url, folder, 8, 5)  # once without a clock
            memory = [resident(service.pid)]
            for clients in CLIENTS:
                say(f"{clients} clients")
                results[f"{clients} clients"] = load(url, folder, clients, options.seconds)
                memory.append(resident(service.pid))
            with urllib.request.urlopen(f"{url}/metrics") as response:
                text = response.read().decode()
            scored = {
                name: float(value) for name, value in re.findall(r"(?m)^cappy_(\w+)_scored_total ([0-9.e+]+)$", text)
            }
            results["pairs of a batch"] = scored["pairs"] / scored["batches"]
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
    first = results["one by one"]["requests_per_second"]
    print(f"\n{', '.join(machine().values())}; {CANDIDATES} pairs a request\n")
    print("| | requests/s | x one by one | median ms | p95 | p99 | failed |\n|---|---|---|---|---|---|---|")
    for name in ("one by one", *(f"{clients} clients" for clients in CLIENTS)):
        row = results[name]
        print(
            f"| {name} | {row['requests_per_second']:.1f} | {row['requests_per_second'] / first:.2f} |"
            f" {row['median']:.0f} | {row['p95']:.0f} | {row['p99']:.0f} | {row['failed']:.0f} |"
        )
    print(f"pairs of a batch: {results['pairs of a batch']:.0f}")
    print(f"memory after each: {', '.join(f'{one:.0f}' for one in memory)} MiB")
    if options.out:
        write_json(options.out, {"machine": machine(), **results, "memory": memory})


if __name__ == "__main__":
    main()
