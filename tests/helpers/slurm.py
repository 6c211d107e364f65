"""A real SLURM (Debian's slurm-wlm and munge) on machines made of namespaces.

    with machines(2, folder) as nodes:
        slurm = Slurm(nodes)
        job = slurm.submit("--array=0-1", "launch/slurm.sbatch", "--data", data, cwd=checkout)
        slurm.wait_for(job, 100, checkout)

The first machine runs slurmctld, all run slurmd, with CPUS cores each whatever this machine has. No
GPUs, no accounting. They end with the machines."""

import os
import sys
from pathlib import Path
from typing import Any

from helpers.commands import ON_CPU
from helpers.nodes import NETWORKS, Machines, wait_until

PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
CPUS = 2
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# cred_expire: a job that is queued again starts after as long, and a second more
CONFIG = """ClusterName=tests
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
SlurmdTimeout=60
KillWait=30
MinJobAge=3600
InactiveLimit=0
SlurmdParameters=config_overrides
MpiDefault=none
"""


class Slurm:
    """SLURM on all of these machines, which must not have one."""

    def __init__(self, nodes: Machines):
        self.nodes = nodes
        self.folder = nodes.folder / "slurm"
        (self.folder / "state").mkdir(parents=True)
        self.config = self.folder / "slurm.conf"
        names = [machine.name for machine in nodes.all]
        lines = [
            f"NodeName={machine.name} NodeAddr={NETWORKS[0]}.{machine.number} CPUs={CPUS}"
            " RealMemory=4000 State=UNKNOWN"
            for machine in nodes.all
        ]
        lines.append(f"PartitionName=all Nodes={','.join(names)} Default=YES State=UP")
        self.config.write_text(CONFIG.format(folder=self.folder) + "\n".join(lines) + "\n")
        # none of the plugins above uses them; without the line slurmd looks for systemd's
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for machine in nodes.all:
            machine.run("mkdir", "-m", "755", "/run/munge")
            machine.run("mkdir", "/run/slurmd", "/run/munge-log")
            where = ["--log-file=/run/munge-log/log", "--seed-file=/run/munge-log/seed"]
            machine.run("munged", "--force", f"--key-file={key}", *where)
        self.run("slurmctld")
        for machine in nodes.all:
            machine.run("slurmd", "-N", machine.name, SLURM_CONF=str(self.config))
        wait_until(
            lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], 60, self.describe
        )
        for machine in nodes.all:
            machine.keep_services()

    def run(self, *words: Any) -> str:
        """What one of SLURM's commands prints, on the first machine."""
        return self.nodes[1].run(*words, SLURM_CONF=str(self.config))

    def submit(self, *words: Any, cwd: Path) -> str:
        """Queue a job as typed in `cwd` with this environment active; return its number."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config = str(self.config)
        typed = ["env", "-C", cwd, "sbatch", "--parsable", *words]
        job = self.nodes[1].run(*typed, **ON_CPU, PATH=path, SLURM_CONF=config)
        return job.strip()

    def end_soon(self, job: str) -> None:
        """Let its time be up in one or two minutes."""
        minutes, seconds = self.jobs(job)[0]["RunTime"].split(":")[-2:]
        limit = (60 * int(minutes) + int(seconds) + 60) // 60 + 1
        self.limit(job, limit)

    def limit(self, job: str, minutes: int) -> None:
        """Let its time be so many minutes, from its start."""
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What SLURM knows of a job, or of each of its array."""
        text = self.run("scontrol", "show", "job", "-o", job)
        return [
            dict(word.split("=", 1) for word in line.split() if "=" in word)
            for line in text.splitlines()
        ]

    def states(self, job: str) -> list[str]:
        return [of["JobState"] for of in self.jobs(job)]

    def wait_for(self, job: str, seconds: float, folder: Path) -> None:
        """Wait until it, or all of its array, has ended for good; its logs are in that folder."""
        wait_until(
            lambda: all(state in ENDS for state in self.states(job)),
            seconds,
            lambda: f"job {job} does not end\n{self.describe(job, folder)}",
        )

    def describe(self, job: str = "", folder: Path | None = None) -> str:
        """What SLURM and the job have to say, for messages."""
        parts = [self.run("sinfo", "-l"), self.run("scontrol", "show", "job", *[job] * bool(job))]
        files = [*self.folder.glob("*.log"), *(folder.glob("*.log") if folder else [])]
        for file in files:
            parts.append(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}")
        return "\n".join(parts)
