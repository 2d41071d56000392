#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes C source with the bytes of files: embed.py OUTPUT FILE..."""
import os
import sys

with open(sys.argv[1], "w") as out:
    out.write('#include "provision/embedded.h"\n')
    table = []
    for number, path in enumerate(sys.argv[2:]):
        data = open(path, "rb").read()
        out.write(f"static const unsigned char file{number}[] = {{{','.join(map(str, data))}}};\n")
        table.append(f'    {{"{os.path.basename(path)}", file{number}, {len(data)}}},\n')
    out.write("const struct embedded_file embedded_files[] = {\n" + "".join(table))
    out.write("    {0, 0, 0},\n};\n")
