#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/benchmarks.md and docs/benchmarks.svg from the scripts' data files (README.md has their format).

    report.py [DOCS]

DOCS (docs, unless given) has the data files in DOCS/benchmarks/. The exit status is 1 if a bar was missed.
"""
import glob
import json
import os
import sys
from xml.sax.saxutils import escape

sys.dont_write_bytecode = True
import results  # noqa: E402

HEAD = """# Benchmarks

<!-- Written by tests/bench/report.py from benchmarks/*.json: change those by running the scripts. -->

    tests/bench/all.sh                          # measures all of this again, in less than ten minutes
    tests/bench/compare.sh --only dense         # one script, one of its parts; then:
    tests/bench/report.py

qverity and its peers are measured on the same data in one run, in rounds in which they take turns. A *ratio* is the
median of those of the rounds, with the smallest and the largest in parentheses; other figures are medians of the
rounds, too. A bar is what a ratio, or a figure without a peer, must reach. What all processes but the
benchmark's own used of the CPUs meanwhile stands below each table: where it is more than a few
hundredths of a CPU, the figures above are to be taken again.

![Rates beside the peers'](benchmarks.svg)
"""


def machine_text(machine):
    flags = ", ".join(machine["flags"]) or "none of SHA-NI, AVX2, AVX-512"
    return (f"{machine['cpu']}{', virtual' if machine['virtual'] else ''}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, "
            f"{machine['kernel']}; of the instructions that hash kernels use: {flags}")


def section(data):
    parts = data["parts"]
    lines = ["", f"## {data['title']}", "", data["how"], "", "| what | qverity | beside it | ratio | bar | met |",
             "|---|---|---|---|---|---|"]
    for part in parts.values():
        lines += ["| " + " | ".join(results.row_texts(row)) + " |" for row in part["rows"]]
    lines += ["", f"`tests/bench/{data['script']}.sh` measured", ""]
    for name, part in parts.items():
        disturbed = ": **disturbed**" if part["other_cpu"] > results.DISTURBED else ""
        rounds = f", {part['rounds']} rounds" if part["rounds"] > 1 else ""
        lines.append(f"- {name}: {part['date']}, {part['seconds']:.0f} s{rounds}; others used {part['other_cpu']:.2f} CPUs{disturbed}")
    machines, versions = [], {}
    for part in parts.values():
        if part["machine"] not in machines:
            machines.append(part["machine"])
        versions |= part["versions"]
    lines += ["", "On " + ". And on ".join(map(machine_text, machines)) + ".  ",
              "With " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."]
    return lines


STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .number { font-size: 12px }
  .ours { fill: #1f6feb }
  .peer { fill: #8c959f }
  .axis { stroke: #8c959f; stroke-width: 1 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .ours { fill: #4493f8 }
    .peer { fill: #7d8590 }
    .axis { stroke: #7d8590 }
  }"""


def chart(sections):
    """A panel for each group of bars; the ground is left transparent, for light pages and dark ones."""
    panels = {}
    for data in sections:
        for part in data["parts"].values():
            for bar in part["chart"]:
                panels.setdefault(bar["panel"], []).append(bar)
    left, width, pitch = 250, 380, 24
    body, y = [], 8
    for title, bars in panels.items():
        most = max(bar["value"] for bar in bars)
        body.append(f'<text class="title" x="8" y="{y + 14}">{escape(title)}</text>')
        y += 26
        top = y
        for bar in bars:
            length = width * bar["value"] / most
            kind = "ours" if bar["ours"] else "peer"
            body += [f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(bar["label"])}</text>',
                     f'<rect class="{kind}" x="{left}" y="{y + 1}" width="{length:.1f}" height="{pitch - 6}" rx="2"/>',
                     f'<text class="number" x="{left + length + 6:.1f}" y="{y + 14}">{results.digits(bar["value"])}</text>']
            y += pitch
        body.append(f'<line class="axis" x1="{left}" y1="{top - 3}" x2="{left}" y2="{y - 2}"/>')
        y += 16
    total = left + width + 70
    label = "; ".join(f"{title}: " + ", ".join(f"{bar['label']} {results.digits(bar['value'])}" for bar in bars)
                      for title, bars in panels.items())
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {y}" width="{total}" height="{y}" '
                      f'role="img" aria-label="{escape(label, {chr(34): "&quot;"})}">',
                      f"<style>{STYLE}\n</style>", *body, "</svg>", ""])


def main():
    docs = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs")
    sections = []
    for path in glob.glob(os.path.join(docs, "benchmarks", "*.json")):
        with open(path) as file:
            sections.append(json.load(file))
    if not sections:
        sys.exit(f"report.py: no data files in {os.path.join(docs, 'benchmarks')}")
    sections.sort(key=lambda data: (data["order"], data["script"]))
    with open(os.path.join(docs, "benchmarks.md"), "w") as file:
        file.write(HEAD + "\n".join(line for data in sections for line in section(data)) + "\n")
    with open(os.path.join(docs, "benchmarks.svg"), "w") as file:
        file.write(chart(sections))
    missed = [row for data in sections for part in data["parts"].values() for row in part["rows"] if row["met"] is False]
    for row in missed:
        print("missed: " + " | ".join(text for text in results.row_texts(row)[:-1] if text))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
