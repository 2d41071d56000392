#!/bin/bash
# SPDX-License-Identifier: MIT
# A build that is killed anywhere, and one that is killed over and over: begun again, it ends with what it would
# have made, and nothing more. QVERITY_TEST_LONG=1 kills it in front of every call that changes files, which takes
# a quarter of an hour.
. "$(dirname "$0")/lib.sh"
. "$top/tests/functional/build-lib.sh"
require pgrep
kill_at=$(realpath "${QVERITY_TOOLS:-$top/build/tests/tools}")/kill-at
"$kill_at" 0 true 2>/dev/null || skip_all "processes cannot be traced here"
# LeakSanitizer traces, too, which only one can.
traced=${ASAN_OPTIONS:-}:detect_leaks=0

make_tree template
play_mmdebstrap
# What mmdebstrap's step asks of apt takes long.
printf '#!/bin/sh\n' >fake/apt-config
chmod 755 fake/apt-config
cat >r.yaml <<'END'
name: t
steps:
  - disk: 24M
    partitions: [{type: root}]
  - install: mmdebstrap
    mirrors: ['http://mirror.invalid/']
  - copy: {from: r.yaml, to: /etc/file}
  - run: [sh, -c, "echo first >>/etc/runs"]
  - name: second
    run: [sh, -c, "echo second >>/etc/runs"]
  - fetch: {from: /etc/runs, to: runs}
  - seal
  - hash
  - manifest: {kernel: runs, initrd: runs}
END

# All files of a work directory, and what is in those that are the same in each.
files()
{
    (cd "$1" && find . ! -type d -printf '%p %y %m\n' | sort && sha256sum runs manifest.json &&
        find steps -path '*/tree/*' -type f -exec sha256sum {} + | sort)
}
# finished DESCRIPTION: what the build in `work` has made is as expected
finished()
{
    files work >made
    if [ "$(sed -n 's/^Root hash: *//p' out)" = "$root" ] && cmp -s made expected; then
        pass "$1"
    else
        fail "$1"
        note "$(tail -n 3 err; diff expected made)"
    fi
    rm -rf work
}
# killed N: kills the build in front of the Nth call; fails if it ended before
killed()
{
    local code
    ASAN_OPTIONS=$traced "$kill_at" "$1" "$QVERITY" build --work work r.yaml >out 2>err </dev/null
    code=$?
    [ $code -ne 137 ] || return 0
    [ $code -eq 0 ] || note "call $1: exit $code: $(tail -n 2 err)"
    return 1
}

build --work whole r.yaml
is "a build that is left alone" $? 0
root=$(sed -n 's/^Root hash: *//p' out)
files whole >expected
trees()
{
    find "$1/steps" -maxdepth 2 -name 'tree*' -printf '%P\n' | sort | tr '\n' ' '
}
is "keeps the trees of install and of the newest step" "$(trees whole)" '02-install/tree 05-run/tree '

# --- Killed over and over ---

# again STRIDE: killed, and begun again at once, until it comes to its end: each time it lives a little longer
again()
{
    local n=$1 kills=0
    while killed $n; do
        kills=$((kills + 1))
        n=$((n + $1))
    done
    [ $kills -gt 5 ] || fail "killed $kills times only"
    finished "killed $kills times"
}
again 14

# --- Killed once ---

n=45
step=130
if [ -n "${QVERITY_TEST_LONG:-}" ]; then
    again 9
    n=1
    step=1
fi
for ((; ; n += step)); do
    killed $n || break
    build --work work r.yaml
    is "killed at call $n, the build is begun again" $? 0
    finished "and goes on to its end"
done
[ $n -gt 200 ] || fail "a build has only $n calls"
finished "one that is not killed"

# --- What only a kill at the wrong moment shows ---

# The tree that a step's is a copy of goes when the step is done.
build --work work --until 4 r.yaml
cp -a work/steps/04-run/tree work/steps/03-copy/tree
mkdir work/steps/02-install/tree.old
build --work work --until 4 r.yaml
is "a tree that was not dropped is dropped later, though nothing is to do" \
    "$? $(grep -c 'done already' err) $(trees work)" '0 4 02-install/tree 04-run/tree '

# fetch looks at a tree that another step has made and that counts.
build --work work --until second r.yaml
tree=work/steps/05-run/tree
find $tree | sort >before
printf '#!/bin/sh\nexec sleep %s\n' $nap >$tree/bin/find
"$QVERITY" build --work work r.yaml >out 2>err </dev/null &
pid=$!
naps()
{
    pgrep -f "^sleep $nap" >/dev/null
}
until_true 60 naps
kill -INT $pid
wait $pid
is "interrupted while it fetches" "$? $(tail -n 1 err | grep -c 'step 6 (fetch): interrupted')" '1 1'
find $tree | sort >after
same "a build leaves nothing in the tree" before after
cp -a template/bin/find $tree/bin/find
# A tree file that had its first name only.
: >work/disk.qcow2.qvtree.0123abcd
build --work work r.yaml
finished "and has the same result"

is "no process is left" "$(left_behind)" ''
finish
