#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A program that behaves as a QEMU does whose guest answers SSH: for tests of `qverity build`.

It takes QEMU's arguments, speaks QMP, and runs this machine's sshd on the port that is forwarded to the
guest's 22, with the host key and the authorized key of the build in $FAKE_GUEST_WORK. What comes by SSH is run
in the tree $FAKE_GUEST_TREE, by chroot. The guest powers off when a file `poweroff` appears in the tree.

$FAKE_GUEST_MODE, words that change that:

    panic       the kernel panics
    dies        QEMU ends with an error
    off         the guest powers off at once
    no-ssh      nobody listens
    other-key   sshd has another host key
    no-login    sshd does not know the build's key
    hangs       powering off does nothing
    stuck       QEMU never answers when it is to change to another disk, which it tells with a file `stuck`
    falls       QEMU ends instead

An installer is told by an -append with an address: it fetches what it is to do into the tree, lets another
process try the same, and powers off. Words for it:

    mute        it does not ask
    failing     it says that it failed
    slow        it takes long
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

work = os.environ["FAKE_GUEST_WORK"]
tree = os.environ.get("FAKE_GUEST_TREE", "")
modes = os.environ.get("FAKE_GUEST_MODE", "").split()
scratch = tempfile.mkdtemp(prefix="fake-guest.")
sshd = None
lock = threading.Lock()
ready = threading.Event()


def options(name):
    return [sys.argv[i + 1] for i in range(1, len(sys.argv) - 1) if sys.argv[i] == name]


def end(status):
    if sshd is not None:
        sshd.kill()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(status)


def send(message):
    with lock:
        try:
            qmp.sendall(json.dumps(message).encode() + b"\r\n")
        except OSError:
            pass


def shut_down(reason):
    send({"event": "SHUTDOWN", "data": {"guest": reason.startswith("guest-"), "reason": reason},
          "timestamp": {"seconds": 1, "microseconds": 2}})
    end(0)


def say(text):
    sys.stdout.write(text + "\r\n")
    sys.stdout.flush()


def serve_qmp():
    send({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}})
    disk = re.search(r"file=([^,]*)", options("-drive")[0]).group(1)
    for line in qmp.makefile("rb"):
        message = json.loads(line)
        command, arguments = message["execute"], message.get("arguments", {})
        if command == "quit":
            send({"return": {}})
            shut_down("host-qmp-quit")
        elif command == "blockdev-snapshot-sync" and "stuck" in modes:
            open(tree + "/stuck", "w").close()
        elif command == "blockdev-snapshot-sync" and "falls" in modes:
            sys.stderr.write("qemu-system-x86_64: it fell\n")
            end(1)
        elif command == "blockdev-snapshot-sync":
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2",
                            arguments["snapshot-file"]], check=True)
            disk = arguments["snapshot-file"]
            send({"return": {}})
        else:
            send({"return": {}})
            ready.set()


def start_sshd():
    global sshd
    forward = re.search(r"hostfwd=tcp:[^:]*:(\d+)-:22", " ".join(sys.argv))
    if forward is None:
        return
    host = scratch + "/host"
    if "other-key" in modes:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host], check=True)
    else:
        shutil.copy(work + "/host-key", host)
        os.chmod(host, 0o600)
    authorized = scratch + "/authorized"
    with open(authorized, "w") as file:
        if "no-login" not in modes:
            subprocess.run(["ssh-keygen", "-y", "-f", work + "/key"], stdout=file, check=True)
    os.makedirs("/run/sshd", exist_ok=True)
    with open(scratch + "/config", "w") as file:
        file.write(f"""Port {forward.group(1)}
ListenAddress 127.0.0.1
HostKey {host}
AuthorizedKeysFile {authorized}
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
ForceCommand exec chroot {tree} /bin/sh -c "$SSH_ORIGINAL_COMMAND"
""")
    sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", scratch + "/config", "-E", scratch + "/log"],
                            stdin=subprocess.DEVNULL, preexec_fn=lambda: prctl_death())


def prctl_death():
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def fetch(url):
    return urllib.request.urlopen(url, timeout=10).read()


def install():
    say("installing")
    if "failing" in modes:
        say("curtin: Installation failed with exception")
        time.sleep(60)
    if "slow" in modes:
        time.sleep(60)
    base = re.search(r"http://10\.0\.2\.2:(\d+/\S*)", options("-append")[0]).group(1)
    for name in ("user-data", "/meta-data", "vendor-data"):
        if "mute" not in modes:
            with open(f"{tree}/{name.strip('/')}", "wb") as file:
                file.write(fetch(f"http://127.0.0.1:{base}{name}"))
    with open(tree + "/intruder", "w") as file:
        subprocess.run([sys.executable, "-c", "import sys, urllib.request; "
                        f"print(urllib.request.urlopen('http://127.0.0.1:{base}user-data').read())"],
                       stdout=file, stderr=subprocess.STDOUT)
    for other in ("x", "../user-data", "user-data/x"):
        try:
            fetch(f"http://127.0.0.1:{base}{other}")
            say("served " + other)
        except urllib.error.HTTPError as error:
            say(f"{other}: {error.code}")
    shut_down("guest-shutdown")


signal.signal(signal.SIGTERM, lambda *_: shut_down("host-signal"))
chardev = next(value for value in options("-chardev") if value.startswith("socket,id=qverity"))
qmp = socket.socket(fileno=int(re.search(r"fd=(\d+)", chardev).group(1)))
threading.Thread(target=serve_qmp, daemon=True).start()
ready.wait(10)
say("booting")
if "panic" in modes:
    say("[    1.0] Kernel panic - not syncing: no such luck")
    shut_down("guest-reset")
if "dies" in modes:
    sys.stderr.write("qemu-system-x86_64: it broke\n")
    end(1)
if "off" in modes:
    shut_down("guest-shutdown")
if options("-append") and "http://" in options("-append")[0]:
    install()
if "no-ssh" not in modes:
    start_sshd()
say("login:")
while not os.path.exists(tree + "/poweroff") or "hangs" in modes:
    time.sleep(0.05)
os.unlink(tree + "/poweroff")
shut_down("guest-shutdown")
