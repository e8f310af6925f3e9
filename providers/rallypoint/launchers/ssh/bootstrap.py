"""How the agent comes to a host that has nothing but Python: a few lines in the command, and a zip that it keeps.

The command holds no secret and says nothing about the job. The zip's name is its digest, so it is sent once for each
version; it lies in a folder that only this user can write.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from functools import lru_cache

from rallypoint.launchers.ssh.frames import MARK
from rallypoint.spec.shipment import pack

FOLDER = ".agent"  # in the launcher's root
_PARTS = (
    "__init__.py",
    "errors.py",
    "worker",
    "spec",
    "launchers/__init__.py",
    "launchers/base.py",
    "launchers/interpreters.py",
    "launchers/nodes.py",
    "launchers/placement.py",
    "launchers/removal.py",
    "launchers/run_folder.py",
    "launchers/supervised.py",
    "launchers/slurm/attempt_folder.py",
    "launchers/slurm/commands.py",
    "launchers/slurm/host.py",
    "launchers/slurm/states.py",
    "launchers/ssh/agent.py",
    "launchers/ssh/frames.py",
)
_SOURCE = """
import hashlib, json, os, stat, struct, sys
sys.stdout.buffer.write(MARK); sys.stdout.buffer.flush()
def read(size):
    data = b""
    while len(data) < size:
        part = sys.stdin.buffer.read(size - len(data))
        if not part:
            sys.exit(1)
        data += part
    return data
def say(**value):
    text = json.dumps(value).encode()
    sys.stdout.buffer.write(struct.pack(">II", len(text), 0) + text); sys.stdout.buffer.flush()
size, _ = struct.unpack(">II", read(8))
hello = json.loads(read(size))
if sys.version_info < (3, 11):
    say(failed="Python " + sys.version.split()[0] + " is too old, 3.11 or newer is needed: name one with python=")
    sys.exit(1)
try:
    folder = os.path.join(hello["root"], FOLDER)
    os.makedirs(hello["root"], mode=0o700, exist_ok=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for path in (hello["root"], folder):
        found = os.stat(path)
        if found.st_mode & stat.S_IWOTH or (found.st_uid not in (0, os.geteuid()) and not found.st_mode & stat.S_IWGRP):
            raise PermissionError(0, "others can write it, and what lies there is run", path)
    path = os.path.join(folder, hello["digest"] + ".zip")
    def good():
        try:
            with open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest() == hello["digest"]
        except FileNotFoundError:
            return False
    if not good():
        say(send=True)
        size, more = struct.unpack(">II", read(8))
        data = read(size + more)[size:]
        draft = path + "." + str(os.getpid())
        with open(draft, "wb") as file:
            file.write(data)
        os.replace(draft, path)
except OSError as error:
    say(failed="the folder " + hello["root"] + " cannot be used: " + str(error))
    sys.exit(1)
sys.path.insert(0, path)
from rallypoint.launchers.ssh import agent
say(ready=True)
agent.main(hello["root"], hello)
"""


@lru_cache(maxsize=1)
def agent_zip() -> bytes:
    """Return the zip of the agent."""
    packages = ("rallypoint/launchers/slurm/__init__.py", "rallypoint/launchers/ssh/__init__.py")
    return pack(_PARTS, dict.fromkeys(packages, b""))


@lru_cache(maxsize=1)
def digest() -> str:
    """Return the digest that names the zip."""
    return hashlib.sha256(agent_zip()).hexdigest()


def command(python: str) -> str:
    """Return the command line that starts the agent, good for any shell."""
    source = f"MARK = {MARK!r}\nFOLDER = {FOLDER!r}\n{_SOURCE}"
    text = base64.b64encode(source.encode()).decode()
    code = f"import base64;exec(base64.b64decode('{text}'))"
    return f"exec {shlex.quote(python)} -c {shlex.quote(code)}"
