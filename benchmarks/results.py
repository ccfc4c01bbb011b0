"""What all benchmarks share: interleaved rounds, ratios to peers, and where the results are kept.

A result is `{name, value, unit, ratios: {peer: x}}`: larger values are better, and a ratio of 2 says twice the peer's
value in the same rounds. `results.json` lists the newest result of each name, `RESULTS.md` shows them with the machine.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGES = ("numpy", "numba", "scipy", "scikit-image", "astra-toolbox")


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table."""

    name: str
    value: float
    unit: str
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of doing the work: `run` does `work` units of it (a slow peer: fewer), `after` tidies up untimed."""

    run: Callable[[], object]
    work: float
    after: Callable[[], object] = lambda: None


def compete(name: str, unit: str, contestants: dict[str, Contestant], rounds: int) -> Result:
    """Return the median rate of the first contestant, and the median over the rounds of its ratio to each other's.

    Every round runs all contestants one after the other, so that what else the machine does meets all of them alike.
    """
    rates: dict[str, list[float]] = {peer: [] for peer in contestants}
    for contestant in contestants.values():
        contestant.run()  # compiles, and touches its memory
        contestant.after()
    for _ in range(rounds):
        for peer, contestant in contestants.items():
            began = time.perf_counter()
            contestant.run()
            rates[peer].append(contestant.work / (time.perf_counter() - began))
            contestant.after()
    ours, *peers = rates
    ratios = {peer: statistics.median(a / b for a, b in zip(rates[ours], rates[peer], strict=True)) for peer in peers}
    result = Result(name, statistics.median(rates[ours]), unit, ratios)
    print(_line(result), flush=True)
    return result


def record(results: list[Result]) -> None:
    """Put `results` into `results.json` in place of older ones of the same names, and write `RESULTS.md`."""
    file = FOLDER / "results.json"
    kept = {entry["name"]: entry for entry in (json.loads(file.read_text()) if file.exists() else [])}
    kept |= {result.name: asdict(result) for result in results}
    entries = sorted(kept.values(), key=lambda entry: entry["name"])
    file.write_text(json.dumps(entries, indent=1) + "\n")
    rows = (_row(Result(**entry)) for entry in entries)
    table = "\n".join(["| name | value | unit | ratio to peers of the same run |", "|---|---|---|---|", *rows])
    (FOLDER / "RESULTS.md").write_text(f"# Results\n\n{machine()}\n\n{table}\n")


def machine() -> str:
    """Return the processor, its cores and the versions, in one paragraph."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {number}" for name in PACKAGES if (number := _version(name)))
    return (
        f"{time.strftime('%Y-%m-%d')}: {_processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}, load {load}. Python {platform.python_version()}, {packages}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ratios(result: Result) -> str:
    return ", ".join(f"{peer} {ratio:.3g}x" for peer, ratio in result.ratios.items())


def _line(result: Result) -> str:
    return f"{result.name:30} {result.value:10.4g} {result.unit:14} {_ratios(result)}"


def _row(result: Result) -> str:
    return f"| {result.name} | {result.value:.4g} | {result.unit} | {_ratios(result)} |"
