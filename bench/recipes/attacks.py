"""Programs that try to get out of the sandbox, or to keep it from going on, and how one would know.

escapes(Sandbox(SandboxLimits(seconds=1)))   # {} where every attack is stopped and reported
"""

import os
import socket
import tempfile
import time
from pathlib import Path

from posttrain.sandbox import Sandbox

MARK = "sandbox-attack-mark"
ATTACKS = {
    "reads a file in $HOME": "print(open({secret!r}).read())",
    "lists the host's home": "import os; print(os.listdir({home!r}))",
    "writes outside": "open({outside!r}, 'w').write('x'); print('written')",
    "writes to the system": "open('/usr/lib/{mark}', 'w').write('x'); print('written')",
    "opens a socket": (
        "import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('connected')"
    ),
    "fork bomb": "import os\nwhile True:\n    os.fork()  # {mark}",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(10**8))",
    "endless loop": "while True: pass  # {mark}",
    "sleeps for ever": "import time; time.sleep(10**6)  # {mark}",
    "kills its parents": (
        "import os, signal\n"
        "for pid in (os.getppid(), 1, -1, {pid}):\n"
        "    try: os.kill(pid, signal.SIGKILL)\n"
        "    except OSError: pass\n"
        "while True: pass"
    ),
    "huge output": "while True: print('x' * 10**6)",
    "leaves a daemon behind": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(600)  # {mark}\n"
        "    os._exit(0)\n"
        "raise SystemExit(7)"
    ),
    "becomes root": "import os; os.setuid(0); print('root')",
    "makes a namespace": "import os; os.unshare(os.CLONE_NEWUSER); print('namespace')",
    "mounts": (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/home', b'tmpfs', 0, None) == 0; print('mounted')"
    ),
    "sees other processes": (
        "import os; others = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "assert len(others) > 6, others; print('seen')"
    ),
    "fills the disk": "open('/tmp/big', 'wb').write(bytes(2**30)); print('written')",
}
"""Name → program. One that succeeds prints something, or is still there afterwards."""


def escapes(sandbox: Sandbox) -> dict[str, str]:
    """Attacks that got out, or after which the sandbox does not go on, with what was seen."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret, outside = Path(folder, "secret"), Path(folder, "outside")
        Path(folder).chmod(0o755)
        secret.write_text("the secret")
        values = {
            "secret": str(secret),
            "home": folder,
            "outside": str(outside),
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "mark": MARK,
        }
        for name, program in ATTACKS.items():
            source = program
            for key, value in values.items():
                source = source.replace(f"{{{key}!r}}", repr(value)).replace(
                    f"{{{key}}}", str(value)
                )
            begun = time.monotonic()
            result = sandbox.run(source)
            if result.ok:
                found[name] = f"it succeeded: {result.stdout[:100]}"
            elif name != "huge output" and result.stdout.strip():
                found[name] = f"it printed {result.stdout[:100]!r}"
            elif outside.exists():
                found[name] = "a file outside is there"
            elif left():
                found[name] = f"left behind: {left()[:2]}"
            elif time.monotonic() - begun > 10:
                found[name] = "it took too long to stop"
            elif sandbox.run(f"print({len(name)})").stdout.strip() != str(len(name)):
                found[name] = "nothing runs after it"
    return found


def left() -> list[str]:
    """Programs of a sandbox that are there for longer than any other run's would be."""
    lasting = _programs()
    for _ in range(30):
        if not lasting:
            break
        time.sleep(0.1)
        now = _programs()
        lasting = {pid: line for pid, line in lasting.items() if pid in now}
    return list(lasting.values())


def _programs() -> dict[str, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "/program.py" in line:
            found[path.parent.name] = line
    return found
