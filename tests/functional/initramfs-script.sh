#!/bin/bash
# SPDX-License-Identifier: MIT
# The guest's initramfs script, run here on made-up /proc, /sys and /dev with a dmsetup that only notes what
# it is asked for: which table it asks for, whatever the disks are called. The guest tests boot the real one.
. "$(dirname "$0")/lib.sh"

script=$T/local-top
mkdir bin dev sys kernel
# Plain files stand for the devices.
sed -e "s|/scripts/functions|$T/functions|; s|/proc/cmdline|$T/kernel/cmdline|; s|/proc/uptime|$T/kernel/uptime|" \
    -e "s|/dev/kmsg|$T/kernel/kmsg|; s|/sys/block|$T/sys|g; s|! -b \"|! -e \"$T|" \
    -e "s|/conf\b|$T/conf|" "$top/provision/initramfs/local-top" >"$script"
cat >functions <<'END'
panic()
{
    echo "panic: $*"
}
END
cat >bin/dmsetup <<END
#!/bin/sh
case \$1 in
info) grep -qx "\$2" "$T/devices" ;;
create)
    echo "\$4" >>"$T/created"
    echo "\${4%%,*}" >>"$T/devices"
    ;;
table) echo "0 8 verity 1 8:2 8:16 4096 4096 1 1 sha256 abcd -" ;;
esac
END
printf '#!/bin/sh\n' >bin/modprobe
printf '#!/bin/sh\n' >bin/udevadm
# Waiting takes no time, and shows a new device after some seconds if the test has one.
cat >bin/sleep <<END
#!/bin/sh
read -r now rest <"$T/kernel/uptime"
now=\${now%.*}
echo "\$((now + 1)).00 0.00" >"$T/kernel/uptime"
[ \$now -lt 107 ] || [ ! -e "$T/late" ] || . "$T/late"
END
chmod +x bin/* local-top

# disk NAME SERIAL PARTITION…: a SCSI disk
disk()
{
    local name=$1 serial=$2
    shift 2
    mkdir -p "sys/$name/device"
    # Four bytes of header come first.
    [ -z "$serial" ] || printf '\000\200\000\014%s' "$serial" >"sys/$name/device/vpd_pg80"
    touch "dev/$name"
    local part
    for part; do touch "dev/$name$part"; done
}

# boot CMDLINE: runs the script; its output is in `out`, what was created in `created`
boot()
{
    rm -rf devices created conf kernel/kmsg
    touch devices created
    echo '100.00 1.00' >kernel/uptime
    printf '%s\n' "$1" >kernel/cmdline
    out=$(PATH=$T/bin:$PATH sh "$script" 2>&1)
    code=$?
    created=$(cat created)
}

clean()
{
    rm -rf dev sys late
    mkdir dev sys
}

rest="0 8 verity 1 /dev/sda2 /dev/sdb 4096 4096 1 1 sha256 abcd - 1 panic_on_corruption"
want="dmverity,,0,ro,$rest"

disk sda qverity-disk 1 2
disk sdb qverity-hash
boot "ro dm-mod.create=\"$want\" root=/dev/dm-0"
is "the value is quoted" "$created" "$want"
like "the console tells" "$(cat kernel/kmsg)" 'qverity: dm-verity is up: dmverity, 1 data blocks of 4096 bytes, sha256 root hash abcd'
is "no shell after a failure" "$(cat conf/param.conf)" "panic=1"
boot "ro \"dm-mod.create=$want\" root=/dev/dm-0 panic=5"
is "all of the parameter is quoted" "$created" "$want"
ok "panic= is the user's" test ! -e conf/param.conf
boot "a=\"b dm-mod.create=wrong c\" dm_mod.create=\"$want\""
is "not taken out of another parameter's value, and dm_mod is dm-mod" "$created" "$want"
boot "ro root=/dev/sda2 xdm-mod.create=a"
is "nothing to do without the parameter" "$created$out$code" 0
ok "and a shell is up to the system then" test ! -e conf/param.conf

boot "dm-mod.create=\"$want; second,,1,ro,0 8 linear /dev/sdb 0\""
is "two devices" "$created" "$want
second,,1,ro,0 8 linear /dev/sdb 0"

clean
disk sda qverity-hash
disk sdb qverity-disk 1 2
boot "dm-mod.create=\"$want\""
is "swapped names" "$created" "dmverity,,0,ro,0 8 verity 1 /dev/sdb2 /dev/sda 4096 4096 1 1 sha256 abcd - 1 panic_on_corruption"

clean
disk sda other 1 2
disk sdb qverity-hash
echo "mkdir -p sys/sdc/device; printf '1234qverity-disk' >sys/sdc/device/vpd_pg80; touch dev/sdc dev/sdc2" >late
boot "dm-mod.create=\"$want\""
is "a disk that was there first is not taken for a late one" "$created" "dmverity,,0,ro,0 8 verity 1 /dev/sdc2 /dev/sdb 4096 4096 1 1 sha256 abcd - 1 panic_on_corruption"

clean
disk sda '' 1 2
disk sdb ''
boot "dm-mod.create=\"$want\""
is "without serials names are names" "$created" "$want"

clean
disk sda qverity-disk 1
disk sdb qverity-hash
boot "dm-mod.create=\"$want\""
is "a partition that never comes: nothing is created" "$created" ""
is "which is an end" "$code" 1
like "and told" "$out" 'panic: qverity: no dm-verity: no such device after 30 seconds: /dev/sda2$'

disk sda qverity-disk 2
boot "dm-mod.create=\"$want\""
echo dmverity >"$T/devices"
: >created
out=$(PATH=$T/bin:$PATH sh "$script" 2>&1)
is "a kernel with dm-init has done it" "$(cat created)" ""
finish
