#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A program that behaves as QEMU does towards its supervisor, with a guest that follows a script.

It takes QEMU's arguments, speaks QMP on the descriptor of `-chardev socket,fd=N`, and has the
guest's console on stdin and stdout. The script is the file $FAKE_QEMU_SCRIPT, a command a line:

    say TEXT        to the console; \\n, \\r, \\t, \\xNN as in Python
    stderr TEXT     a line on stderr
    sleep SECONDS
    await PATH      until there is such a file
    flood BYTES     as many bytes of console, in lines
    disks           say the SHA-256 of each -drive's file, opened as QEMU does, and keep it open
    kernel          say the SHA-256 of the files of -kernel and -initrd
    write           write "guest" to the start of each -drive's file, locked as QEMU locks it
    bye TEXT        to say when it is powered down
    echo            say what the console gets, until a line "end"
    tell REASON     QEMU's SHUTDOWN event, and go on, as with -no-shutdown
    end REASON      QEMU's SHUTDOWN event (guest-shutdown, guest-reset, guest-panic), then exit
    exit STATUS     without an event
    signal NUMBER   to itself
    silent          QMP does not answer, from the beginning of the script on
    garbage         QMP talks nonsense
    deaf            powering down does nothing; without this it ends as a guest does
    stubborn        neither QMP's quit nor SIGTERM ends it
    wait            for ever

With `-machine none` it is asked what it can do, and follows no script:

    $FAKE_QEMU_VERSION  is its version (7.2.0)
    $FAKE_QEMU_OBJECTS  are what -object takes ("sev-guest")
    $FAKE_QEMU_SEV      is the C-bit that query-sev-capabilities tells, or else its error
    $FAKE_QEMU_ASKED    is what it does when it is asked: "silent", "exit", "garbage", "nothing" (answers that
                        are none)

The script begins once the supervisor has negotiated QMP, except if QMP is silent or talks garbage.
$FAKE_QEMU_LOG gets a line for the process id, for the arguments, and for each QMP command and signal.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time

lock = threading.RLock()
ready = threading.Event()
modes = {}
kept = []
qmp = None


def log(text):
    path = os.environ.get("FAKE_QEMU_LOG")
    if path:
        with lock, open(path, "a") as file:
            file.write(text + "\n")


def send(message):
    if qmp is not None:
        with lock:
            try:
                qmp.sendall(json.dumps(message).encode() + b"\r\n")
            except OSError:
                pass


def tell_end(reason):
    guest = reason.startswith("guest-")
    send({"event": "SHUTDOWN", "data": {"guest": guest, "reason": reason},
          "timestamp": {"seconds": 1, "microseconds": 2}})


def shut_down(reason):
    tell_end(reason)
    os._exit(0)


def serve_qmp():
    if "garbage" in modes:
        qmp.sendall(b'{"QMP": {"version"\r\n')
        return
    version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
    greeting = json.dumps({"QMP": {"version": version, "capabilities": ["oob"]}}).encode() + b"\r\n"
    # In pieces, as a stream may deliver it.
    for i in range(0, len(greeting), 7):
        qmp.sendall(greeting[i:i + 7])
    for line in qmp.makefile("rb"):
        command = json.loads(line)["execute"]
        log("qmp " + command)
        if command == "qmp_capabilities":
            send({"return": {}})
            ready.set()
        elif command == "quit":
            send({"return": {}})
            if "stubborn" not in modes:
                shut_down("host-qmp-quit")
        elif command == "system_powerdown":
            send({"return": {}})
            if "deaf" not in modes:
                say_text(modes.get("bye", ""))
                shut_down("guest-shutdown")
        else:
            send({"error": {"class": "CommandNotFound", "desc": "no such command"}})


def answer(command):
    """What a QEMU without a machine says of itself."""
    major, minor, micro = map(int, os.environ.get("FAKE_QEMU_VERSION", "7.2.0").split("."))
    if command == "query-version":
        return {"return": {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": ""}}
    if command == "qom-list-types":
        names = os.environ.get("FAKE_QEMU_OBJECTS", "sev-guest").split() + ["secret", "iothread"]
        return {"return": [{"name": name, "parent": "object"} for name in names]}
    if command == "query-sev-capabilities":
        sev = os.environ.get("FAKE_QEMU_SEV", "SEV is not enabled in KVM")
        if "accel=kvm" not in sys.argv[sys.argv.index("-machine") + 1]:
            sev = "KVM not enabled"
        if sev.isdigit():
            return {"return": {"cbitpos": int(sev), "reduced-phys-bits": 1, "pdh": "", "cert-chain": ""}}
        return {"error": {"class": "GenericError", "desc": sev}}
    return {"return": {}}


def be_asked():
    how = os.environ.get("FAKE_QEMU_ASKED", "")
    log("asked " + options("-machine")[0])
    if how == "silent":
        time.sleep(1000)
    if how == "exit":
        sys.exit("fake: cannot do that")
    if how == "garbage":
        qmp.sendall(b"\x00\x01\x02\n")
        time.sleep(1000)
    send({"QMP": {"version": {}, "capabilities": []}})
    for line in qmp.makefile("rb"):
        command = json.loads(line)["execute"]
        log("qmp " + command)
        send({"return": {}} if how == "nothing" else answer(command))
    os._exit(0)


def on_sigterm(number, frame):
    log("signal %d" % number)
    if "stubborn" not in modes:
        shut_down("host-signal")


def options(name):
    return [sys.argv[i + 1] for i in range(1, len(sys.argv) - 1) if sys.argv[i] == name]


def fields(text):
    """key=value,… of an option, where two commas stand for one."""
    parts = text.replace(",,", "\0").split(",")
    return dict(part.replace("\0", ",").partition("=")[::2] for part in parts)


def say(text):
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def say_text(text):
    say(text.encode().decode("unicode_escape").encode("latin-1"))


def write_disks():
    for drive in options("-drive"):
        file = open(fields(drive)["file"], "r+b")
        # What a writer holds, and what nobody else may hold (block/file-posix.c).
        for byte in (100, 101, 103, 201, 203):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        file.write(b"guest")
        file.flush()
        kept.append(file)


def say_disks():
    for drive in options("-drive"):
        file = open(fields(drive)["file"], "rb")
        # QEMU takes its image locks with locks of this kind.
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 100)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        say(b"%s %s\n" % (fields(drive)["id"].encode(), digest.hexdigest().encode()))
        kept.append(file)


def say_kernel():
    for option in ("-kernel", "-initrd"):
        for path in options(option):
            with open(path, "rb") as file:
                say(b"%s %s\n" % (option.encode(), hashlib.sha256(file.read()).hexdigest().encode()))


def flood(count):
    line = b"the quick brown fox jumps over the lazy dog, again and again, line by line\r\n"
    block = line * 1000
    while count > 0:
        say(block[:count])
        count -= len(block)


def echo():
    for line in sys.stdin.buffer:
        say(b"got " + line)
        if line.strip() == b"end":
            break


def run(command, argument):
    if command == "say":
        say_text(argument)
    elif command == "stderr":
        print(argument, file=sys.stderr, flush=True)
    elif command == "sleep":
        time.sleep(float(argument))
    elif command == "await":
        while not os.path.exists(argument):
            time.sleep(0.02)
    elif command == "flood":
        flood(int(argument))
    elif command == "disks":
        say_disks()
    elif command == "kernel":
        say_kernel()
    elif command == "write":
        write_disks()
    elif command == "echo":
        echo()
    elif command == "tell":
        tell_end(argument)
    elif command == "end":
        shut_down(argument)
    elif command == "exit":
        os._exit(int(argument))
    elif command == "signal":
        os.kill(os.getpid(), int(argument))
    elif command == "wait":
        while True:
            time.sleep(1000)
    elif command not in ("silent", "garbage", "deaf", "stubborn", "bye"):
        sys.exit("fake-qemu: no such command: " + command)


def main():
    global qmp
    log("pid %d" % os.getpid())
    log("argv " + json.dumps(sys.argv[1:]))
    signal.signal(signal.SIGTERM, on_sigterm)
    for chardev in options("-chardev"):
        if "fd" in fields(chardev):
            qmp = socket.socket(fileno=int(fields(chardev)["fd"]))
        elif "path" in fields(chardev):
            # Left behind unless QEMU ends in good order, which this one never does.
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(fields(chardev)["path"])
            kept.append(listener)
    if options("-machine")[0].startswith("none"):
        be_asked()
    with open(os.environ["FAKE_QEMU_SCRIPT"]) as file:
        script = [line.rstrip("\n").partition(" ")[::2] for line in file if line.strip()]
    modes.update(script)
    if "silent" not in modes:
        threading.Thread(target=serve_qmp, daemon=True).start()
        if "garbage" not in modes:
            ready.wait()
    for command, argument in script:
        run(command, argument)
    # Off its script's end a guest powers off.
    shut_down("guest-shutdown")


main()
