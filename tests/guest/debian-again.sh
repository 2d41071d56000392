#!/bin/bash
# SPDX-License-Identifier: MIT
# debian.yaml built a second time, in another directory and killed in nearly every step: the same root hash, kernel,
# initrd and manifest as those of the demo image, for which it was built in one go. It takes as long as the demo image.
. "$(dirname "$0")/../functional/lib.sh"
. "$top/tests/guest/guest.sh"
[ "$(id -u)" -eq 0 ] || skip_all "building a tree needs root"
require mmdebstrap pgrep
guest_need_image

recipe=$top/provision/recipes/debian.yaml
# reached STEP: the build has begun the step, or has ended
reached()
{
    grep -q "^\[$1/" err || ! kill -0 $pid 2>/dev/null
}
# killed_in STEP
killed_in()
{
    "$QVERITY" build --work again "$recipe" >out 2>err </dev/null &
    pid=$!
    t_kill_later $pid
    until_true 3600 reached "$1"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    if [ $? -eq 137 ]; then
        kills=$((kills + 1))
        note "killed after: $(tail -n 1 err)"
    fi
    t_pids=()
}
steps=$("$QVERITY" build --list --work again "$recipe" | grep -c .)
kills=0
for ((step = 2; step <= steps; step++)); do
    killed_in $step
done
[ $kills -ge $((steps / 2)) ]
is "a build is killed $kills times, in $steps steps" $? 0
"$QVERITY" build --work again "$recipe" >out 2>err </dev/null
is "and ends well" $? 0
[ $t_failed -eq 0 ] || note "$(tail -n 5 err)"

# The mirrors may have newer packages by now.
status()
{
    "$QVERITY" cat "$1/disk.qcow2:/var/lib/dpkg/status" 2>/dev/null | sha256sum
}
if [ "$(status again)" != "$(status "$demo")" ]; then
    note "other packages than in the demo image; it is compared with one built here"
    demo=$T/once
    ok "one that is not killed" "$QVERITY" build --work "$demo" "$recipe"
fi
root_hash()
{
    "$QVERITY" hash "$1/disk.qcow2" | sed -n 's/^Root hash:[[:space:]]*//p'
}
is "the root hash is the other build's" "$(root_hash again)" "$(root_hash "$demo")"
like "which the build tells" "$(cat out)" "^Root hash: +$(root_hash "$demo")$"
for file in vmlinuz initrd.img manifest.json; do
    same "$file is" again/$file "$demo/$file"
done
finish
