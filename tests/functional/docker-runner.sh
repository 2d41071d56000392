#!/bin/bash
# SPDX-License-Identifier: MIT
# The guest's docker-runner of the recipe blyss, with a docker, a curl and a mount that are played.
. "$(dirname "$0")/lib.sh"

runner=$top/provision/recipes/blyss/docker-runner
mkdir bin
cat >bin/docker <<'END'
#!/bin/bash
{
    printf docker
    printf ' [%s]' "$@"
    echo
} >>"$CALLS"
case "$1 $2" in
"network inspect") exit "${NETWORK:-1}" ;;
esac
for word; do
    case $word in
    broken*) exit 125 ;;
    esac
done
echo id
END
cat >bin/curl <<'END'
#!/bin/bash
echo "curl ${*: -1}" >>"$CALLS"
[ "$(grep -c '^curl' "$CALLS")" -ge "${ANSWERS_AT:-1}" ]
END
printf '#!/bin/bash\necho "mount $*" >>"$CALLS"\n' >bin/mount
printf '#!/bin/bash\n:\n' >bin/sleep
chmod 755 bin/*
export CALLS=$T/calls DOCKER_RUNNER_CMDLINE=$T/cmdline DOCKER_RUNNER_MOUNTS=$T/mounts DOCKER_RUNNER_TRIES=5
export PATH=$T/bin:$PATH
: >mounts

# run CMDLINE: runs it; sets `code`, and the files calls, out, err
run()
{
    : >calls
    printf '%s\n' "$1" >cmdline
    "$runner" >out 2>err </dev/null
    code=$?
}

run 'root=/dev/dm-0 blyss_docker_img=app:1 quiet'
is "the application alone" "$code" 0
is "is run in the foreground, with the GPUs, in the network" "$(cat calls)" 'docker [network] [inspect] [blyss]
docker [network] [create] [--driver] [bridge] [blyss]
docker [run] [--name] [app] [--network] [blyss] [--gpus] [all] [app:1]'

run 'a blyss_shim_docker_img="registry/shim@sha256:12 --flag" blyss_ui_docker_img=ui "blyss_docker_img=app --model x/y" b'
is "all three" "$code" 0
is "in order: shim, wait, user interface, application" "$(tail -n +3 calls)" \
    'docker [run] [--detach] [--name] [shim] [--network] [blyss] [--publish] [80:80] [--publish] [443:443] [--gpus] [all] [--privileged] [registry/shim@sha256:12] [--flag]
curl http://localhost:80
docker [run] [--detach] [--name] [ui] [--network] [blyss] [ui]
docker [run] [--name] [app] [--network] [blyss] [--gpus] [all] [app] [--model] [x/y]'

ANSWERS_AT=4 run 'blyss_shim_docker_img=shim blyss_docker_img=app'
is "the shim is waited for" "$code $(grep -c '^curl' calls)" '0 4'
ANSWERS_AT=9 run 'blyss_shim_docker_img=shim blyss_docker_img=app'
is "but not for ever" "$code $(grep -c '^curl' calls) $(cat err)" '1 5 docker-runner: the shim does not answer at port 80'
is "and nothing is run behind one that does not answer" "$(grep -c '\[app\]' calls)" 0

NETWORK=0 run 'blyss_docker_img=app'
is "a network that is there is used" "$(grep -c create calls)" 0

run 'blyss_ui_docker_img=ui quiet'
is "without an application" "$code" 1
is "it says so" "$(cat err)" 'docker-runner: blyss_docker_img is not on the kernel command line'
is "and runs nothing" "$(cat calls)" ''
run 'xblyss_docker_img=app blyss_docker_img= blyss_docker_imgs=x "a blyss_docker_img=app"'
is "names are not taken for others, or from within quotes" "$code" 1
run 'blyss_docker_img=first blyss_docker_img=second'
is "the last one counts" "$(grep -c '\[second\]' calls)" 1
run 'blyss_docker_img="app * $(touch pwned) `touch pwned` ; touch pwned"'
is "no shell reads a value" "$(tail -n 1 calls) $(ls pwned 2>/dev/null)" \
    'docker [run] [--name] [app] [--network] [blyss] [--gpus] [all] [app] [*] [$(touch] [pwned)] [`touch] [pwned`] [;] [touch] [pwned] '

echo 'tmpfs-root /media/root-rw tmpfs rw,relatime 0 0' >mounts
run 'blyss_docker_img=app'
is "memory for changes is enlarged where they are kept there" "$(head -n 1 calls)" \
    'mount -o remount,size=85% /media/root-rw'

run 'blyss_shim_docker_img=broken blyss_docker_img=app'
is "a shim that does not start" "$code $(cat err)" '1 docker-runner: the shim does not start: broken'
run 'blyss_ui_docker_img=broken-ui blyss_docker_img=app'
is "a user interface that does not start" "$code $(cat err)" '1 docker-runner: the user interface does not start: broken-ui'
run 'blyss_docker_img=broken-app'
is "the application's code is the runner's" "$code" 125
finish
