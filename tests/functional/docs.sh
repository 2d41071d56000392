#!/bin/bash
# SPDX-License-Identifier: MIT
# What --help says and what the man page and the README say are the same commands and options.
. "$(dirname "$0")/lib.sh"
require python3

"$QVERITY" --help >help || fail "qverity --help"
commands=$(sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' help | sort)
like "there are commands" "$(tr '\n' ' ' <<<"$commands")" 'boot .*hash .*mount '

# options_of_man COMMAND: its own and those of the groups that it takes, one a line; the sections of all
# commands without an argument.
cat >man.py <<'END'
import re, sys

sections, name, tag = {}, None, False
for line in open(sys.argv[1]):
    line = line.rstrip("\n").replace("\\-", "-")
    if line.startswith((".SS ", ".SH ")):
        name = re.sub(r"\\f[IPRB]", "", line[4:])
        sections[name] = {"options": set(), "groups": []}
    elif name is None:
        continue
    elif line in (".TP", ".TQ"):
        tag = True
    else:
        if tag:
            sections[name]["options"] |= set(re.findall(r"--[a-z][a-z-]*", line))
        tag = False
        if line.startswith("Common options: "):
            sections[name]["groups"] = line[16:].rstrip(".").split(", ")

commands = {s.split()[1]: v for s, v in sections.items() if s.startswith("qverity ")}
if len(sys.argv) == 2:
    print(*sorted(commands), sep="\n")
else:
    command = commands.get(sys.argv[2], {"options": set(), "groups": []})
    options = set(command["options"])
    for group in command["groups"]:
        options |= sections[group.capitalize() + " options"]["options"]
    print(*sorted(options), sep="\n")
END

page=$top/docs/qverity.1
is "the man page has the commands of --help" "$(python3 man.py "$page")" "$commands"
is "the README has the commands of --help" \
    "$(sed -n 's/^| `qverity \([a-z]*\).*/\1/p' "$top/README.md" | sort -u)" "$commands"
for command in $commands; do
    "$QVERITY" "$command" --help >help || fail "qverity $command --help"
    is "the man page has the options of qverity $command" "$(python3 man.py "$page" "$command")" \
        "$(grep -oE '^ +(-[a-zA-Z], )?--[a-z][a-z-]*' help | grep -oE -- '--[a-z-]+' | sort -u)"
done

# Every command that the README shows takes the options that it shows.
while read -r _ command words; do
    "$QVERITY" "$command" --help >help 2>/dev/null || {
        fail "the README shows qverity $command"
        continue
    }
    for word in $words; do
        case $word in
        --) break ;;
        --*) ok "README: qverity $command ${word%%=*}" grep -qE -- " ${word%%=*}( |$)" help ;;
        esac
    done
done < <(sed -n 's/^\$ \(qverity .*\)/\1/p' "$top/README.md")
finish
