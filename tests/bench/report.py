#!/usr/bin/env python3
"""Writes benchmarks.md and benchmarks.svg from what compare.sh measured in this directory.

    report.py OUT ROUNDS QVERITY NAME...
"""
import json
import os
import re
import statistics
import subprocess
import sys

out, rounds, qverity, names = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]


def times(name):
    return [json.load(open(f"r-{name}-{n}.json"))["results"][0]["median"] for n in range(1, rounds + 1)]


measured = {name: times(name) for name in names}
median = {name: statistics.median(values) for name, values in measured.items()}
memory = json.load(open("memory.json"))
latency = json.load(open("latency.json"))


def against(name, peer):
    """The median over the rounds of the peer's time by ours, measured within seconds of each other."""
    return statistics.median(p / t for t, p in zip(measured[name], measured[peer]))


def slower(name, peer):
    return statistics.median(t / p for t, p in zip(measured[name], measured[peer]))


rows = []  # what, figure, bar, whether it is met


def row(what, figure, bar, met):
    rows.append((what, figure, bar, "yes" if met else "**no**"))


def ratio_row(what, name, bar):
    value = against(name, "veritysetup")
    row(what, f"{value:.1f}× ({median[name]:.2f} s against {median['veritysetup']:.2f} s)", f"≥ {bar}×", value >= bar)


ratio_row("`hash`, 2 GiB dense raw, against `veritysetup format`", "dense-raw", 5)
ratio_row("the same, `--threads 1`", "dense-raw-1", 2.2)
ratio_row("`hash`, 2 GiB dense qcow2", "dense-qcow2", 5)
ratio_row("the same, `--threads 1`", "dense-qcow2-1", 2.2)
row("499 GiB, all unallocated", f"{median['seed-empty'] * 1000:.0f} ms", "≤ 100 ms", median["seed-empty"] <= 0.1)
row("the same, memory", f"{memory['empty.qcow2'] / 2**20:.0f} MiB", "≤ 32 MiB", memory["empty.qcow2"] <= 32 << 20)
value = slower("seed-scattered", "dense-qcow2")
row("499 GiB with 2 GiB of data in scattered 64 KiB clusters, against 2 GiB dense",
    f"{value:.2f}× the time ({median['seed-scattered']:.2f} s)", "≤ 1.3×", value <= 1.3)
value = slower("preallocated", "dense-1g")
row("100 GiB, preallocation=metadata, 1 GiB of data, against 1 GiB dense",
    f"{value:.2f}× the time ({median['preallocated']:.2f} s)", "≤ 2×", value <= 2)
value = against("zeros-1g", "dense-1g")
row("1 GiB of allocated zeros, against 1 GiB of random data", f"{value:.1f}× faster ({median['zeros-1g']:.2f} s)",
    "≥ 3×", value >= 3)
row("a level-0 block read through the mount, nothing kept: median", f"{latency['median'] * 1000:.2f} ms "
    f"(99 %: {latency['p99'] * 1000:.2f} ms)", "≤ 0.5 ms", latency["median"] <= 0.0005)
largest = max(memory, key=memory.get)
row("memory while hashing, 2 threads, the largest of all", f"{memory[largest] / 2**20:.0f} MiB ({largest})", "≤ 128 MiB",
    memory[largest] <= 128 << 20)


def command_output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def cpu():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    return model.group(1) if model else "unknown"


def package(name):
    return command_output("dpkg-query", "-W", "-f", "${Version}", name) or "?"


def markdown():
    text = ["# Benchmarks", "",
            "Written by `tests/bench/compare.sh`, which measures qverity beside its peers on the same data in one run; "
            f"medians of {rounds} rounds in which the commands take turns. All data is in the page cache.", "",
            "| what | measured | bar | met |", "|---|---|---|---|"]
    text += [f"| {what} | {figure} | {bar} | {met} |" for what, figure, bar, met in rows]
    text += ["", "![Gigabytes a second](benchmarks.svg)", "", "## Hash kernels", ""]
    kernels = open("kernels.txt").read().rstrip()
    text += ["SHA-256 of 4 KiB blocks with a salt of 32 bytes, one core (`bench-hasher`):", "", "```", kernels, "```"] \
        if kernels else ["Not measured: `bench-hasher` was not built."]
    text += ["", "## Machine", "",
             f"{cpu()}, {os.cpu_count()} CPUs, "
             f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB, Linux {os.uname().release}; "
             f"{command_output(qverity, '--version')}, {command_output('veritysetup', '--version').split(' flags')[0]}, "
             f"libcrypto {package('libssl3')}, liburing {package('liburing2')}, "
             f"{command_output('qemu-img', '--version').splitlines()[0].split(' (')[0]}.", ""]
    return "\n".join(text)


def chart():
    data_gb = 2**31 / 1e9
    bars = [("veritysetup format", data_gb / median["veritysetup"], "#888888"),
            ("qverity, 1 thread, raw", data_gb / median["dense-raw-1"], "#2a6fb0"),
            ("qverity, raw", data_gb / median["dense-raw"], "#2a6fb0"),
            ("qverity, qcow2", data_gb / median["dense-qcow2"], "#2a6fb0"),
            ("qverity, 2 GiB scattered over 499 GiB", data_gb / median["seed-scattered"], "#2a6fb0")]
    most = max(value for _, value, _ in bars)
    left, width, height = 290, 380, 26
    total = height * len(bars) + 50
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{total}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="22" font-weight="bold">Root hash of 2 GiB of data, GB/s</text>']
    for i, (label, value, colour) in enumerate(bars):
        y = 36 + i * height
        svg.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{label}</text>')
        svg.append(f'<rect x="{left}" y="{y}" width="{width * value / most:.1f}" height="{height - 6}" fill="{colour}"/>')
        svg.append(f'<text x="{left + width * value / most + 6:.1f}" y="{y + 15}">{value:.2f}</text>')
    svg.append("</svg>\n")
    return "\n".join(svg)


os.makedirs(out, exist_ok=True)
with open(os.path.join(out, "benchmarks.md"), "w") as file:
    file.write(markdown())
with open(os.path.join(out, "benchmarks.svg"), "w") as file:
    file.write(chart())
for what, figure, bar, met in rows:
    print(f"{what}: {figure}, bar {bar}: {met.strip('*')}")
sys.exit(0 if all(met == "yes" for *_, met in rows) else 1)
