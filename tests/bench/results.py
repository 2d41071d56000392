#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the benchmark scripts of this directory have in common: their data files (README.md has the format), what
machine and which versions were measured, and how much CPU time others took meanwhile.

As a module it is used by the scripts' last step, which has the times and makes rows of them. As a program:

    results.py adopt SCRIPT [ARGUMENT…]     runs a script so that orphans among its descendants become its children
    results.py begin PART, results.py end   around what is timed; lib.sh calls them
"""
import ctypes
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time

HASH_FLAGS = ("sha_ni", "avx2", "avx512f", "avx512bw")


# --- CPU time: ours, and that of others ---


def descendants(root):
    """The fields of /proc/PID/stat, from the state on, of root and all below it."""
    processes = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    processes[int(name)] = file.read().rpartition(")")[2].split()
            except OSError:
                pass  # has ended
    below = {root}
    grown = True
    while grown:
        found = {pid for pid, fields in processes.items() if int(fields[1]) in below}
        grown = not found <= below
        below |= found
    return [processes[pid] for pid in below if pid in processes]


def cpu_snapshot():
    """Seconds on the clock, that all CPUs were busy, and that our own processes have used.

    Ours are the script and all below it, and those that have ended and were waited for. As the script adopts
    orphans, nobody's time is lost when a process ends.
    """
    hertz = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = sum(int(field) for fields in descendants(int(os.environ["BENCH_ADOPTER"])) for field in fields[11:15])
    return {"clock": time.time(), "busy": (user + nice + system + irq + softirq + steal) / hertz, "own": own / hertz}


def window_path():
    return os.path.join(os.environ["BENCH_WORK"], "window.json")


def begin(part):
    with open(window_path(), "w") as file:
        json.dump({"part": part, "begin": cpu_snapshot()}, file)


def end():
    with open(window_path()) as file:
        window = json.load(file)
    window["end"] = cpu_snapshot()
    with open(window_path(), "w") as file:
        json.dump(window, file)


# --- Who was measured ---


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def version(*command):
    """The first version number in what a command prints."""
    found = re.search(r"\d+(\.\d+)+", output(*command))
    return found[0] if found else "unknown"


def package(name):
    """Of a library: its Debian package's version."""
    return output("dpkg-query", "-W", "-f", "${Version}", name) or "unknown"


def machine():
    with open("/proc/cpuinfo") as file:
        lines = [line.partition(":") for line in file.read().split("\n\n")[0].splitlines()]
    info = {key.strip(): value.strip() for key, _, value in lines}
    flags = info.get("flags", "").split()
    return {
        "cpu": f"{info.get('model name', 'unknown')} (family {info.get('cpu family', '?')}, model {info.get('model', '?')})",
        "flags": [flag for flag in HASH_FLAGS if flag in flags],
        "virtual": "hypervisor" in flags,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        # The rest of the release is what its builder calls it.
        "kernel": f"{os.uname().sysname} {re.match('[0-9.]*', os.uname().release)[0]}",
    }


# --- Rows ---


def times(directory="times"):
    """{name: [seconds of round 1, of round 2, …]} of what `take_turns` of lib.sh measured."""
    found = {}
    for name in sorted(os.listdir(directory), key=lambda name: int(name.split(".")[0])):
        with open(os.path.join(directory, name)) as file:
            for result in json.load(file)["results"]:
                found.setdefault(result["command"], []).append(result["median"])
    return found


class Part:
    """The rows of one part of a script, as `begin PART` … `end` measured it."""

    def __init__(self, rounds, versions):
        with open(window_path()) as file:
            window = json.load(file)
        self.name = window["part"]
        start, stop = window["begin"], window["end"]
        seconds = stop["clock"] - start["clock"]
        others = (stop["busy"] - start["busy"]) - (stop["own"] - start["own"])
        qverity = os.environ["QVERITY"]
        self.data = {
            "date": datetime.datetime.fromtimestamp(stop["clock"], datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": round(seconds, 1),
            "other_cpu": round(max(0, others) / seconds, 3),
            "rounds": rounds,
            "machine": machine(),
            "versions": {"qverity": version(qverity, "--version"), **versions},
            "rows": [],
            "chart": [],
        }

    def add(self, what, figure, unit, bar=None, peer=None, peer_figure=None, ratio=None, spread=None, note=None):
        """A row. What is judged is the ratio, or the figure if there is no peer. bar: ">= 5", "<= 0.1"."""
        judged = figure if ratio is None else ratio
        met = None
        if bar is not None and judged is not None:
            sign, limit = bar.split()
            met = {">=": judged >= float(limit), "<=": judged <= float(limit)}[sign]
        self.data["rows"].append({"what": what, "figure": figure, "unit": unit, "peer": peer, "peer_figure": peer_figure,
                                  "ratio": ratio, "spread": spread, "bar": bar, "met": met, "note": note})

    def figure(self, what, values, unit, bar=None, note=None):
        """The median of some values of our own."""
        self.add(what, statistics.median(values), unit, bar, spread=[min(values), max(values)], note=note)

    def compare(self, what, ours, peer, theirs, ratio, bar=None, unit="s", scale=1, note=None):
        """Values of the rounds, ours and the peer's. What counts is the median of the rounds' ratios, of which each
        is of two measurements that were made within seconds. ratio: "peer/ours" (times as fast, if they
        are times), or "ours/peer" (times as fast, if they are rates; times as much time otherwise)."""
        assert len(ours) == len(theirs) and ratio in ("peer/ours", "ours/peer")
        ratios = [t / o if ratio == "peer/ours" else o / t for o, t in zip(ours, theirs)]
        self.add(what, statistics.median(ours) / scale, unit, bar, peer, statistics.median(theirs) / scale,
                 statistics.median(ratios), [min(ratios), max(ratios)], note)

    def unmeasured(self, what, bar, why, unit="×"):
        """A row that this machine cannot fill."""
        self.add(what, None, unit, bar, note=why)

    def chart(self, panel, label, value, ours=True):
        """A bar of a panel of the chart; panel says what is drawn and in which unit."""
        self.data["chart"].append({"panel": panel, "label": label, "value": value, "ours": ours})

    def save(self, order, title, how):
        """Puts the part into the script's data file, in place of what it had, and prints its rows.

        order, title, how: of the script's section of docs/benchmarks.md; the latter is Markdown and says what is
        measured and how. Returns whether all bars were met.
        """
        path = os.path.join(os.environ["BENCH_DATA"], os.environ["BENCH_SCRIPT"] + ".json")
        try:
            with open(path) as file:
                parts = json.load(file)["parts"]
        except FileNotFoundError:
            parts = {}
        parts[self.name] = rounded(self.data)
        data = {"script": os.environ["BENCH_SCRIPT"], "order": order, "title": title, "how": how, "parts": parts}
        with open(path + ".new", "w") as file:
            json.dump(data, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.replace(path + ".new", path)
        for row in parts[self.name]["rows"]:
            print(" | ".join(text for text in row_texts(row) if text))
        if self.data["other_cpu"] > DISTURBED:
            print(f"DISTURBED: others used {self.data['other_cpu']:.2f} CPUs meanwhile")
        return all(row["met"] is not False for row in self.data["rows"])


def done(met):
    """Ends the program with the status that lib.sh's `save` expects."""
    sys.exit(0 if met else 3)


# --- What people read ---

DISTURBED = 0.1  # CPUs that others used: beyond this, a measurement should be taken again


def rounded(value):
    """Four digits are more than any of this is good for, and make small diffs."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def digits(value):
    """Three digits that count, without an exponent."""
    value = float(f"{value:.3g}") if abs(value) < 100 else round(value)
    exponent = int(f"{value:e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent) if value else 0}f}"


def row_texts(row):
    """The cells: what, ours, the peer's, ratio, bar, met."""
    unit = "×" if row["unit"] == "×" else f" {row['unit']}".rstrip()

    def spread(low, high):
        return f" ({digits(low)}–{digits(high)})" if row["spread"] and digits(low) != digits(high) else ""

    ours = "not measured" if row["figure"] is None else digits(row["figure"]) + unit
    theirs = ratio = bar = ""
    if row["peer"]:
        theirs = f"{digits(row['peer_figure'])}{unit} ({row['peer']})"
        ratio = f"{digits(row['ratio'])}×{spread(*row['spread']) if row['spread'] else ''}"
    elif row["spread"]:
        ours += spread(*row["spread"])
    if row["bar"]:
        sign, limit = row["bar"].split()
        bar = f"{dict([('>=', '≥'), ('<=', '≤')])[sign]} {limit}{'×' if row['peer'] else unit}"
    what = row["what"] + (f" ({row['note']})" if row["note"] else "")
    met = {True: "yes", False: "**no**", None: ""}[row["met"]]
    return what, ours, theirs, ratio, bar, met


def main():
    action, *arguments = sys.argv[1:]
    if action == "adopt":
        PR_SET_CHILD_SUBREAPER = 36
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        os.execvp("bash", ["bash", *arguments])
    elif action == "begin":
        begin(*arguments)
    elif action == "end":
        end()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
