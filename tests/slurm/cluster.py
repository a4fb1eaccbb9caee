"""A real SLURM on this machine: a controller and three nodes of one daemon each, in a scratch folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NODES = ("node1", "node2", "node3")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait={kill_wait}
MinJobAge=600
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=16000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=16000
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=8 RealMemory=16000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node1,node2,node3 Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=node1,node2,node3 PriorityTier=2 State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here; None where there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"no {absent[0]}: needs a real SLURM (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "the daemons of SLURM need root"


class Cluster:
    """A running cluster; its commands find it by `$SLURM_CONF` alone."""

    def __init__(self, root: Path, kill_wait: int) -> None:
        self.root = root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        munge = root / "munge"
        munge.mkdir(mode=0o755)
        munge.chmod(0o755)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        (root / "state").mkdir()
        sockets = [socket.socket() for _ in range(1 + len(NODES))]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        conf = CONF.format(host=socket.gethostname(), root=root, ports=ports, kill_wait=kill_wait)
        (root / "slurm.conf").write_text(conf)
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        names = ("log", "pid", "seed")
        files = [f"--{name}-file={munge}/{name}" for name in names]
        self._start("munged", "munged", "--foreground", f"--key-file={munge}/key", f"--socket={munge}/socket", *files)
        self._until(lambda: (munge / "socket").exists())
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def _start(self, name: str, *command: str) -> None:
        log = open(self.root / f"{name}.out", "ab")
        self._processes[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def _until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "the cluster does not come up"
            time.sleep(0.1)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start(node, "slurmd", "-D", "-N", node)

    def wait_for_nodes(self) -> None:
        """Until all nodes are there and free."""
        self._until(lambda: self.run("sinfo", "-h", "-p", "main", "-o", "%D %T").split() == [str(len(NODES)), "idle"])

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and everything that runs on it."""
        daemon = self._processes.pop(node)
        for pid in [*_below(daemon.pid), *_steps_of(self.root, node)]:
            _kill(pid)
        _kill(daemon.pid)
        daemon.wait()

    def run(self, *command: str) -> str:
        """What a command of SLURM prints; empty where it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def state(self, job: str) -> str:
        """The state of a job, as `PENDING` or `COMPLETED`."""
        return self.field(job, "JobState")

    def states(self, job: str) -> list[str]:
        """The state of every task of an array."""
        return self.run("squeue", "-h", "-r", "--states=all", "-o", "%T", "-j", job).split()

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`."""
        words = self.run("scontrol", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def stop(self) -> None:
        """End every process of the cluster."""
        self.run("scancel", "--user=root", "--signal=KILL", "--full")
        for name in NODES:
            if name in self._processes:
                self.kill_node(name)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(30)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    return found


def _below(pid: int) -> list[int]:
    """All processes that a process has started, directly or not."""
    parents, found = _parents(), [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _steps_of(root: Path, node: str) -> list[int]:
    """What slurmstepd has started for a node; these have left the daemon's tree."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        own = f"SLURM_CONF={root}/slurm.conf".encode() in variables
        if own and f"SLURMD_NODENAME={node}".encode() in variables:
            found += [int(entry.name), *_below(int(entry.name))]
    return found


@contextmanager
def run_cluster(kill_wait: int = 30) -> Iterator[Cluster]:
    """A cluster for a while, in a folder that all may enter, as munge wants it (pytest's own are closed)."""
    root = Path(tempfile.mkdtemp(prefix="slurm"))
    root.chmod(0o755)
    cluster = Cluster(root, kill_wait)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root)
