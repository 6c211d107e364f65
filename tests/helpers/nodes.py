"""Machines made of namespaces, on this machine: each with its own network addresses, host name,
process ids, /etc/hosts, /run and /dev/shm, an sshd, and one folder that no other machine sees. All
other files are the same on all of them, as on a shared disk.

    with machines(2, folder) as nodes:
        typed = nodes[1].typed("deepspeed", "--hostfile", nodes.hostfile(1, 2), ...)
        nodes[2].pull_cable()
        typed.done()

They are named node1, node2, ... and have the addresses 10.77.0.N (eth0) and 10.78.0.N (eth1).

Namespaces have no names here and their networks lead nowhere else, so two test runs on one machine
do not meet. Each machine ends when its standard input does: it does not outlive the process that
made it, however that ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.captures import ROOT
from helpers.commands import ON_CPU, Done, Typed

NETWORKS = ("10.77.0", "10.78.0")  # of eth0 and eth1
# what the machines are made with, by Debian package
PROGRAMS = {
    "/usr/sbin/sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "pkill": "procps",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
BOOT_S = 60.0
INIT = """set -e
mount --make-rprivate /
hostname {name}
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs {private}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/../ssh_config /etc/ssh/ssh_config
mkdir /run/sshd /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys  # with this machine's interfaces
mount --rbind /run/cgroup /sys/fs/cgroup
ip link set lo up
echo up >{folder}/up
read -r || true
"""
SSHD = """HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
PidFile /run/sshd.pid
"""
SSH = """Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""


def require_machines(programs: dict[str, str] = PROGRAMS) -> None:
    """Skip the test, by name of what is missing, where machines cannot be made."""
    if os.geteuid():
        pytest.skip("machines of namespaces need root")
    if missing := sorted({pack for name, pack in programs.items() if not shutil.which(name)}):
        pytest.skip(f"needs the Debian packages {' '.join(missing)}")
    trial = "ip link add type veth; ip link add type bridge; mount -t sysfs sysfs /sys; hostname a"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-ec", trial],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        pytest.skip(f"namespaces cannot be made here: {tried.stderr.strip()}")


class OnMachine(Typed):
    """A command typed on a machine, in the repository's root and in a session of its own."""

    def __init__(self, machine: "Machine", *words: Any, **env: Any):
        # a process of its own enters the namespaces; what it starts is the command
        super().__init__(
            *machine.enter, "setsid", "env", "-C", ROOT, *words, **{"HOME": "/root", **env}
        )
        self.words = words

    @property
    def command(self) -> psutil.Process:
        """The command's own process, of which signals are not passed on to any other."""
        return psutil.Process(self.process.pid).children()[0]

    def press_ctrl_c(self) -> None:
        """Send SIGINT as a terminal does: to all processes of the command's group."""
        os.killpg(self.command.pid, signal.SIGINT)

    def said(self) -> str:
        """What it has printed so far."""
        return "".join(
            Path(f"/proc/self/fd/{file.fileno()}").read_text(errors="replace")
            for file in self.files
            if not file.closed
        )

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            os.killpg(self.command.pid, signal.SIGKILL)
        super().kill()


class Machine:
    """One machine; `private` is a folder on its own disk."""

    def __init__(self, number: int, folder: Path, private: Path, switch: int):
        self.number = number
        self.name = f"node{number}"
        self.folder = folder
        self.private = private
        self.switch = switch
        self.hosts = folder / "hosts"
        self.namespaces: subprocess.Popen[bytes] | None = None
        self.init = 0
        self.services: set[int] = set()
        folder.mkdir()
        self.write_hosts()

    @property
    def enter(self) -> list[Any]:
        """The words before a command that runs here."""
        return ["nsenter", "-t", self.init, "-m", "-u", "-i", "-n", "-p", "--"]

    def write_hosts(self, like_debian: bool = False) -> None:
        """Write /etc/hosts: with the network's addresses alone, or as Debian's installer does."""
        lines = ["127.0.0.1 localhost"]
        if like_debian:
            lines.append(f"127.0.1.1 {self.name}")
        lines += [f"{NETWORKS[0]}.{number} node{number}" for number in range(1, 10)]
        self.hosts.write_text("\n".join(lines) + "\n")

    def boot(self) -> None:
        """Start it, with its cables in the switch and its sshd."""
        script, up = self.folder / "init.sh", self.folder / "up"
        script.write_text(INIT.format(name=self.name, folder=self.folder, private=self.private))
        up.unlink(missing_ok=True)
        log = (self.folder / "log").open("ab")
        self.namespaces = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", script],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        wait_until(up.exists, BOOT_S, f"{self.name} does not start")
        self.init = psutil.Process(self.namespaces.pid).children()[0].pid
        for i, network in enumerate(NETWORKS):
            port = f"port{i}-{self.number}"
            cable = f"link add {port} type veth peer name eth{i} netns {self.init}"
            on_switch(self.switch, *cable.split())
            on_switch(self.switch, "link", "set", port, "master", f"switch{i}", "up")
            self.run(*f"ip addr add {network}.{self.number}/24 dev eth{i}".split())
            self.run("ip", "link", "set", f"eth{i}", "up")
        self.start_sshd()
        self.keep_services()

    def start_sshd(self) -> None:
        self.run("/usr/sbin/sshd", "-f", self.folder.parent / "sshd_config")

    @contextlib.contextmanager
    def refusing_ssh(self) -> Iterator[None]:
        """No sshd runs here until the block ends."""
        self.end_work()
        listening = [process for process in self.processes() if process.name() == "sshd"]
        for process in listening:
            process.kill()
        psutil.wait_procs(listening)
        try:
            yield
        finally:
            self.end_work()
            self.start_sshd()
            self.keep_services()

    def keep_services(self) -> None:
        """Let everything that runs now stay when the work ends."""
        self.services = {process.pid for process in self.processes()}

    def run(self, *words: Any, **env: Any) -> str:
        """What a short command prints, which must end well."""
        done = subprocess.run(
            [*map(str, self.enter), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=BOOT_S,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, (self.name, words, done.stdout, done.stderr)
        return done.stdout

    def typed(self, *words: Any, **env: Any) -> OnMachine:
        """A command, typed here and at work from now on."""
        return OnMachine(self, *words, **env)

    def processes(self) -> list[psutil.Process]:
        """All that runs on this machine, by its ids outside of it."""
        found = []
        space = os.readlink(f"/proc/{self.init}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                is_here = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                if is_here and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self, script: str = "train.py") -> list[psutil.Process]:
        """The processes of this machine that train, and have not ended."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                is_python = Path(words[0]).name.startswith("python") if words else False
                is_rank = "RANK" in process.environ() or "SLURM_PROCID" in process.environ()
                if is_python and is_rank and any(word.endswith(f"/{script}") for word in words):
                    found.append(process)
        return found

    def pid_here(self, process: psutil.Process) -> int:
        """The id that a process of this machine has on it."""
        status = Path(f"/proc/{process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
        return int(line.split()[-1])

    def received(self, interface: str) -> int:
        """The bytes that came in there."""
        return int(self.run("cat", f"/sys/class/net/{interface}/statistics/rx_bytes"))

    def pull_cable(self) -> None:
        """Take its cables out of the switches: nothing comes or goes, and nobody is told."""
        for i in range(len(NETWORKS)):
            on_switch(self.switch, "link", "set", f"port{i}-{self.number}", "down")

    def plug_cable_in(self) -> None:
        for i in range(len(NETWORKS)):
            on_switch(self.switch, "link", "set", f"port{i}-{self.number}", "up")

    def end_work(self) -> None:
        """Kill what was started here since it booted."""
        for process in self.processes():
            if process.pid not in self.services:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def cut_power(self) -> None:
        """End all its processes at once; nobody on the network hears of it."""
        if not self.namespaces:
            return
        if self.init and self.namespaces.poll() is None:
            self.pull_cable()
            os.kill(self.init, signal.SIGKILL)
        self.namespaces.kill()  # and so its child, where it had not started
        self.namespaces.wait()
        assert self.namespaces.stdin
        self.namespaces.stdin.close()
        self.namespaces = None
        self.init = 0


class Machines:
    """Machines by their number, from 1, and what commands on several of them need."""

    def __init__(self, count: int, folder: Path):
        self.folder = folder
        self.private = folder / "private"
        self.private.mkdir(parents=True)
        self.all: list[Machine] = []
        for name in ("host_key", "user_key"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(key, check=True)
        (folder / "sshd_config").write_text(SSHD.format(folder=folder))
        (folder / "ssh_config").write_text(SSH.format(folder=folder))
        self.switch = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            wait_until(lambda: self._has_own_network(), BOOT_S, "there is no switch")
            for i in range(len(NETWORKS)):
                on_switch(self.switch.pid, "link", "add", f"switch{i}", "type", "bridge")
                on_switch(self.switch.pid, "link", "set", f"switch{i}", "up")
            for number in range(1, count + 1):
                where = folder / f"node{number}"
                self.all.append(Machine(number, where, self.private, self.switch.pid))
                self.all[-1].boot()
        except BaseException:
            self.end()
            raise

    def _has_own_network(self) -> bool:
        return os.readlink(f"/proc/{self.switch.pid}/ns/net") != os.readlink("/proc/self/ns/net")

    def __getitem__(self, number: int) -> Machine:
        return self.all[number - 1]

    def hostfile(self, *numbers: int) -> Path:
        """A file with one rank on each of these machines."""
        path = self.folder / f"hosts-{'-'.join(map(str, numbers))}"
        path.write_text("".join(f"node{number} slots=1\n" for number in numbers))
        return path

    def variables(self, **env: Any) -> Path:
        """A file with the variables of all ranks, for DS_ENV_FILE."""
        number = len(list(self.folder.glob("variables-*")))
        path = self.folder / f"variables-{number}"
        lines = [f"{name}={value}\n" for name, value in {**ON_CPU, **env}.items()]
        path.write_text("".join(lines))
        return path

    def end_work(self) -> None:
        for machine in self.all:
            machine.end_work()

    def as_before(self) -> None:
        """End all work; cables are in, names resolve, and private folders are empty."""
        for machine in self.all:
            if not machine.namespaces or machine.namespaces.poll() is not None:
                machine.cut_power()
                machine.boot()
            machine.end_work()
            machine.plug_cable_in()
            machine.write_hosts()
            machine.run("find", machine.private, "-mindepth", 1, "-delete")

    def end(self) -> None:
        for machine in self.all:
            machine.cut_power()
        self.switch.kill()
        self.switch.wait()
        assert self.switch.stdin
        self.switch.stdin.close()


@contextlib.contextmanager
def machines(count: int, folder: Path) -> Iterator[Machines]:
    """So many machines, until the block ends; skips where they cannot be made."""
    require_machines()
    nodes = Machines(count, folder)
    try:
        yield nodes
    finally:
        nodes.end()


def on_switch(switch: int, *words: Any) -> None:
    """Run `ip WORDS` where the switches are."""
    line = ["nsenter", "-t", str(switch), "-n", "ip", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


def wait_until(found: Callable[[], Any], seconds: float, otherwise: Any) -> Any:
    """What `found()` returns as soon as it is something; fails with `otherwise` (or what it
    returns) after that time."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            pytest.fail(str(otherwise() if callable(otherwise) else otherwise))
        time.sleep(0.05)
    return value


def all_said(done: Done) -> str:
    """Everything that a command printed, as one text for messages."""
    return f"exit code {done.code}\n--- stdout\n{done.out}\n--- stderr\n{done.err}"
