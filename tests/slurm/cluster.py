"""A real Slurm on this machine: two nodes (cpu1, gpu1), partitions cpu and gpu, accounting; Debian as root only.

    python tests/slurm/cluster.py start|stop|why-not
    eval "$(python tests/slurm/cluster.py environment)"    then sinfo, squeue, snakemake --profile slurm

It needs no systemd or cgroups. Everything is below one folder; only processes that were started here are ended,
recognised by process id and start time. The Slurm plugin removes SLURM_CONF from its job steps, hence the links in
/etc/slurm.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(os.environ.get("SLURM_TEST_ROOT", Path(tempfile.gettempdir(), "clue-bench-slurm")))
PORT = int(os.environ.get("SLURM_TEST_PORT", 26817))
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "slurmdbd", "mariadb-server"]
LINKED = Path("/etc/slurm")
ACCOUNT = "bench"

SLURM_CONF = """
ClusterName=clue
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
StateSaveLocation={root}/state/slurmctld
SlurmdSpoolDir={root}/state/slurmd-%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerParameters=sched_min_interval=100000,bf_interval=2,batch_sched_delay=0,defer_batch=0
KillWait=10
SlurmctldTimeout=30
SlurmdTimeout=15
# More CPUs than the machine has would otherwise make a node invalid.
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={root}/run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment
NodeName=cpu1 NodeHostname=cpu1 NodeAddr=127.0.0.1 Port={cpu_port} CPUs=4 RealMemory=20000
NodeName=gpu1 NodeHostname=gpu1 NodeAddr=127.0.0.1 Port={gpu_port} CPUs=4 RealMemory=20000 Gres=gpu:fake:2
PartitionName=cpu Nodes=cpu1 Default=YES DefaultTime=10 MaxTime=UNLIMITED State=UP
PartitionName=gpu Nodes=gpu1 Default=NO DefaultTime=10 MaxTime=UNLIMITED State=UP
"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
# Real device files, since slurmd accepts no others; the last digit becomes the number in CUDA_VISIBLE_DEVICES.
GRES_CONF = """
AutoDetect=off
NodeName=gpu1 Name=gpu Type=fake File={root}/dev/nvidia[0-1]
"""


def why_not() -> str:
    """Return why the cluster cannot be set up here, or nothing if it can."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "it takes root on Debian"
    for name in ("slurm.conf", "gres.conf"):
        link = LINKED / name
        if os.path.lexists(link) and not (link.is_symlink() and Path(os.readlink(link)).parent == ROOT / "etc"):
            return f"{link} belongs to another Slurm"
    return ""


def environment() -> dict[str, str]:
    """Return the variable by which Slurm's commands find the cluster."""
    return {"SLURM_CONF": f"{ROOT}/etc/slurm.conf"}


def start() -> None:
    """Start whatever is not running yet, until both nodes accept jobs."""
    os.environ.update(environment())
    _install()
    _write_files()
    _start_munge()
    _start_accounting()
    start_controller()
    for node in ("cpu1", "gpu1"):
        start_node(node)


def stop() -> None:
    """Cancel all jobs, end what `start` started, and remove its files."""
    os.environ.update(environment())
    if _running("slurmctld"):
        subprocess.run(["scancel", "--user=root"], timeout=30)
        _wait("jobs to end", lambda: not _output("squeue", "--noheader"), 60)
    for name in ("slurmd-cpu1", "slurmd-gpu1", "slurmctld", "slurmdbd", "mariadbd", "munged"):
        end(name)
    for process in _step_daemons():
        process.kill()
    for name in ("slurm.conf", "gres.conf"):
        link = LINKED / name
        if link.is_symlink() and Path(os.readlink(link)).parent == ROOT / "etc":
            link.unlink()
    shutil.rmtree(ROOT, ignore_errors=True)


# ---- parts that tests stop and start -------------------------------------------------------------


def start_controller() -> None:
    """Start slurmctld."""
    _launch("slurmctld", "/usr/sbin/slurmctld", "-D", "-i", "-f", f"{ROOT}/etc/slurm.conf")
    _wait("slurmctld", lambda: "UP" in _output("scontrol", "ping"))


def start_node(node: str) -> None:
    """Start the slurmd of a node and wait until it accepts jobs."""
    _launch(f"slurmd-{node}", "/usr/sbin/slurmd", "-D", "-N", node, "-f", f"{ROOT}/etc/slurm.conf")
    if _state(node).startswith(("down", "drain")):
        _output("scontrol", "update", f"nodename={node}", "state=resume")
    _wait(node, lambda: _state(node) in ("idle", "mixed", "allocated", "completing"), 60)


def lose_node(node: str) -> None:
    """Kill a node's slurmd and the daemons of its steps with all their processes, as a power failure does."""
    end(f"slurmd-{node}", kill=True)
    for daemon in _step_daemons(node):
        for process in [*daemon.children(recursive=True), daemon]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def end(name: str, kill: bool = False) -> None:
    """End a daemon, if it is the process that was started here."""
    process = _running(name)
    if process:
        process.kill() if kill else process.terminate()
        try:
            process.wait(20)
        except psutil.TimeoutExpired:
            process.kill()
    _pid_file(name).unlink(missing_ok=True)


def _state(node: str) -> str:
    return _output("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split("\n")[0].strip("*~#")


def _step_daemons(node: str = "") -> list[psutil.Process]:
    """Return the slurmstepd processes of this cluster, or of one of its nodes."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "slurmstepd" and process.environ().get("SLURM_CONF") == environment()["SLURM_CONF"]:
                jobs = _output("squeue", "--noheader", f"--nodelist={node}", "--format=%i").split() if node else []
                if not node or any(f"[{job}." in " ".join(process.cmdline()) for job in jobs):
                    found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


# ---- the steps of start --------------------------------------------------------------------------


def _install() -> None:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}\n", *PACKAGES], capture_output=True
    )
    if done.returncode == 0 and set(done.stdout.split()) == {b"installed"}:
        return
    # Debian starts daemons when it installs them, unless this file says no.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        quiet = {
            "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            "stdout": subprocess.DEVNULL,
            "check": True,
        }
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], **quiet)
    finally:
        if ours:
            policy.unlink()


def _write_files() -> None:
    for folder in ("etc", "log", "run", "pids", "dev", "state/munge", "state/slurmctld", "state/slurmd-cpu1",
                   "state/slurmd-gpu1"):  # fmt: skip
        Path(ROOT, folder).mkdir(parents=True, exist_ok=True)
    Path(ROOT, "state/munge").chmod(0o700)
    values = {"root": ROOT, "host": socket.gethostname().split(".")[0], "port": PORT, "accounting_port": PORT + 1}
    values |= {"database_port": PORT + 2, "cpu_port": PORT + 3, "gpu_port": PORT + 4}
    LINKED.mkdir(exist_ok=True)
    for name, text in (("slurm.conf", SLURM_CONF), ("gres.conf", GRES_CONF), ("slurmdbd.conf", SLURMDBD_CONF)):
        file = ROOT / "etc" / name
        file.write_text(text.format(**values))
        file.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        if name != "slurmdbd.conf":
            (LINKED / name).unlink(missing_ok=True)
            (LINKED / name).symlink_to(file)
    for number in (0, 1):
        device = ROOT / "dev" / f"nvidia{number}"
        if not device.exists():
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))


def _start_munge() -> None:
    key = ROOT / "etc/munge.key"
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
    words = ["--foreground", "--force", f"--socket={ROOT}/run/munge.socket", f"--key-file={key}"]
    words += [f"--pid-file={ROOT}/run/munged.pid", f"--seed-file={ROOT}/state/munge/seed"]
    _launch("munged", "/usr/sbin/munged", *words, f"--log-file={ROOT}/log/munged.log")
    _wait("munge", lambda: _output("munge", "-S", f"{ROOT}/run/munge.socket", "-n"))


def _start_accounting() -> None:
    data, server = ROOT / "state/mysql", ROOT / "run/mysqld"
    for folder in (data, server):
        folder.mkdir(exist_ok=True)
        shutil.chown(folder, "mysql", "mysql")
    if not (data / "mysql").exists():
        words = ["--user=mysql", f"--datadir={data}", "--skip-test-db", "--auth-root-authentication-method=socket"]
        subprocess.run(["mariadb-install-db", *words], check=True, stdout=subprocess.DEVNULL)
    words = ["--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={server}/mysqld.sock"]
    words += ["--bind-address=127.0.0.1", f"--port={PORT + 2}", "--innodb-buffer-pool-size=64M", "--skip-name-resolve"]
    words += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"]
    _launch("mariadbd", "/usr/sbin/mariadbd", *words, f"--pid-file={server}/mysqld.pid")
    sql = ["mariadb", "--no-defaults", "--user=root", f"--socket={server}/mysqld.sock", "--execute"]
    _wait("mariadb", lambda: _output(*sql, "select 1"))
    statements = "create database if not exists slurm_acct_db; "
    statements += "create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm'; "
    subprocess.run([*sql, f"{statements} grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'"], check=True)
    _launch("slurmdbd", "/usr/sbin/slurmdbd", "-D")
    _wait("slurmdbd", lambda: _output("sacctmgr", "--immediate", "list", "cluster"))
    for words in (["cluster", "clue"], ["account", ACCOUNT, "Cluster=clue"], ["user", "root", f"Account={ACCOUNT}"]):
        _output("sacctmgr", "--immediate", "--quiet", "add", *words)


def _launch(name: str, *command: str) -> None:
    """Start a daemon unless it is running, and record its process id and start time."""
    if _running(name):
        return
    with open(ROOT / "log" / f"{name}.out", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    _pid_file(name).write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")


def _running(name: str) -> psutil.Process | None:
    """Return the process that `_launch` started under a name, if that one is still running."""
    if not _pid_file(name).exists():
        return None
    pid, created = _pid_file(name).read_text().split()
    try:
        process = psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        return None
    alive = process.create_time() == float(created) and process.status() != psutil.STATUS_ZOMBIE
    return process if alive else None


def _pid_file(name: str) -> Path:
    return ROOT / "pids" / name


def _output(*command: str) -> str:
    """Return what a command prints, or nothing if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


def _wait(what: str, ready, seconds: int = 40) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text(errors="replace")[-1000:] for log in sorted((ROOT / "log").iterdir()))
            raise TimeoutError(f"no {what} after {seconds} s\n{logs}")
        time.sleep(0.2)


def main(action: str) -> None:
    """Run the program."""
    reason = why_not()
    if action == "why-not":
        print(reason)
    elif reason:
        sys.exit(f"no Slurm here: {reason}")
    elif action == "environment":
        print("".join(f"export {name}={value}\n" for name, value in environment().items()), end="")
    else:
        {"start": start, "stop": stop}[action]()


if __name__ == "__main__":
    main(sys.argv[1])
