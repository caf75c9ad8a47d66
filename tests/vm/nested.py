"""KVM guests inside the VM, each with one virtio-net device on a tap, behind vhost-net. For the programs called in-vm."""

import json
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
import time

HOST = "192.0.2.1"
GUEST = "192.0.2.2"
# Does the driver tell in /proc/PID/fdinfo/FD what it does? The C driver does not.
COUNTED = os.environ.get("VHOST_MODULE") != "c"
DRIVER = "the Rust driver" if COUNTED else "the C driver (which counts nothing)"


# How a guest may use its IOMMU, and the kernel's parameter for it.
IOMMU = {"lazy": "iommu.strict=0", "strict": "iommu.strict=1", "passthrough": "iommu.passthrough=1"}


class Failure(Exception):
    """A test that did not hold; its text is the result."""


class EmulatorFlaw(Exception):
    """The emulated processor, not the driver, ended the guest: it says so, the guest stands still, or it resets itself.

    A guest says something on its serial console every 5 seconds. One that does no longer is frozen as a whole, with its
    timer; what a vhost driver does wrong can only take its network away, or its data. A guest that resets itself without
    a word has met a triple fault (QEMU then ends, without an error); one that panics may have been given wrong data.
    These two are of x86, whose virtualization is emulated worse than that of arm64.
    """


def guest_died(how):
    """What to raise for a guest that froze or reset itself: the emulator's flaw where it is known for that."""
    return EmulatorFlaw(how) if platform.machine() == "x86_64" else Failure(how)


# For each kind of machine, which guests are of too: the console, QEMU's options, those of the device, and the kernel's parameters.
# The emulated SVM of x86 now and then fails an MMIO exit, whatever the vhost driver. So MMIO exits are kept rare there: the queues are
# kicked through a port, and the interrupt controller is an x2apic.
MACHINES = {
    "x86_64": ("ttyS0", ["-machine", "q35", "-cpu", "qemu64,+x2apic"], ",modern-pio-notify=on", "no_timer_check"),
    "aarch64": ("ttyAMA0", ["-machine", "virt,gic-version=3", "-cpu", "host"], ",romfile=", ""),
}

ATTEMPTS = 5
# Seconds that QEMU gets for an answer, on a busy machine.
PATIENCE = 120


def attempts(run):
    """What `run` returns, which is called again if the emulator's flaw gets in its way."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run()
        except EmulatorFlaw as flaw:
            # `make check` shows the lines that begin so.
            print(f"report: the emulated processor failed the guest (attempt {attempt} of {ATTEMPTS}): {flaw}", file=sys.stderr)
    sys.exit("The emulated processor failed in each attempt; that says nothing of the driver.")


def run(*command, timeout=20):
    """A command's stdout; it has to succeed within the time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} hung for {timeout} s") from None
    if done.returncode != 0:
        raise Failure(f"{command[0]}: {(done.stdout + done.stderr).strip()[-300:]}")
    return done.stdout


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def add_tap(name, queues=1):
    several = ["multi_queue"] if queues > 1 else []
    run("ip", "tuntap", "add", name, "mode", "tap", "vnet_hdr", *several)
    run("ip", "link", "set", name, "up")


class Guest:
    """A QEMU whose network device is the tap of its name, with the files that make-guest made."""

    def __init__(self, tap, files, *options, device="", iommu=None, queues=1, vhost=True):
        # Room for what arrives while a busy machine does not run the receiver.
        for name in ("rmem_max", "rmem_default"):
            pathlib.Path(f"/proc/sys/net/core/{name}").write_text("4194304")
        self.tap, self.log, self.qemu_log = tap, f"/tmp/{tap}.log", f"/tmp/{tap}.qemu.log"
        console, machine, pci, append = MACHINES[platform.machine()]
        append = f"console={console} panic=-1 {append}"
        iommu_options = []
        if iommu:
            # Then the device's addresses are the IOMMU's, and vhost has an IOTLB. Before the device that it serves.
            iommu_options = ["-device", "intel-iommu,device-iotlb=on,intremap=off"]
            append += f" intel_iommu=on {IOMMU[iommu]}"
            device += ",disable-legacy=on,iommu_platform=on,ats=on"
        # Without vhost QEMU moves the packets itself.
        backend = "vhost=on,vhostforce=on" if vhost else "vhost=off"
        netdev = f"tap,id=net,ifname={tap},script=no,downscript=no,{backend}"
        if queues > 1:
            # A vector for each queue, the configuration and the control queue.
            netdev += f",queues={queues}"
            device += f",mq=on,vectors={2 * queues + 2}"
        command = [
            f"qemu-system-{platform.machine()}", "-accel", "kvm", *machine, "-m", "384M",
            "-name", "guest=demo", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-kernel", f"{files}/kernel", "-initrd", f"{files}/initramfs",
            "-append", append, *iommu_options, "-serial", f"file:{self.log}",
            "-netdev", netdev,
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:12:34:56{pci}{device}",
            *options,
        ]  # fmt: skip
        with open(self.log, "w"), open(self.qemu_log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    # Under -rt, on a busy machine, it takes more than two minutes.
    def wait_until_ready(self, timeout=300):
        end = time.monotonic() + timeout
        while "GUEST READY" not in read(self.log):
            self.check_alive()
            if time.monotonic() > end:
                self.check_not_frozen()
                raise Failure(f"did not boot in {timeout} s: ...{read(self.log)[-300:]}")
            time.sleep(0.2)

    def check_alive(self):
        said = read(self.qemu_log)
        if "KVM internal error" in said:
            raise EmulatorFlaw(said[:300])
        if self.process.poll() == 0:
            last = read(self.log)
            if re.search(r"Kernel panic|Oops|BUG:|general protection|nable to handle|kill init", last):
                raise Failure(f"the guest's kernel gave up:\n{last[-1500:]}")
            raise guest_died(f"it reset itself; it said last:\n{last[-1500:]}")
        if self.process.poll() is not None:
            raise Failure(f"QEMU ended with {self.process.returncode}: {said[-300:] or read(self.log)[-300:]}")
        if "falling back on userspace" in said:
            raise Failure(f"QEMU does not use vhost-net: {said[-300:]}")

    def wait_until_ended(self):
        """For a QEMU that closed its side of something: it may still have its memory to give back."""
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass

    def check_not_frozen(self):
        said = len(read(self.log))
        time.sleep(20)
        if len(read(self.log)) == said:
            raise guest_died(f"it is frozen; it said last:\n{read(self.log)[-300:]}")

    def fdinfos(self):
        """What the module tells of the devices that QEMU has open, one for each pair of queues."""
        folder, devices = f"/proc/{self.process.pid}", []
        for fd in sorted(os.listdir(f"{folder}/fd"), key=int):
            try:
                if os.readlink(f"{folder}/fd/{fd}") == "/dev/vhost-net":
                    lines = read(f"{folder}/fdinfo/{fd}").splitlines()
                    devices.append({key: value.strip() for key, _, value in (line.partition(":") for line in lines)})
            except FileNotFoundError:
                continue
        if not devices:
            # It closes its files before it is gone.
            self.wait_until_ended()
            self.check_alive()
            raise Failure("QEMU has no /dev/vhost-net open")
        return devices

    def fdinfo(self):
        return self.fdinfos()[0]

    def all_counters(self):
        """The numbers of each device."""
        if not COUNTED:
            return []
        return [
            {key: int(value) for key, value in device.items() if re.match(r"[rt]x-.*", key) and value.isdigit()}
            for device in self.fdinfos()
        ]

    def counters(self):
        return self.all_counters()[0] if COUNTED else {}

    def worker_time(self):
        """The processor time of vhost's worker in nanoseconds."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int(read(task / "schedstat").split()[0]) for task in tasks if read(task / "comm").startswith("vhost-"))

    def evidence(self):
        """What there is to see of a guest that does not answer: the module's counters, the worker, the last words."""
        print("\nWhat the guest left:", file=sys.stderr)
        for file in sorted(pathlib.Path(f"/sys/class/net/{self.tap}/statistics").glob("[rt]x_[dep]*")):
            print(f"{self.tap} {file.name} {file.read_text().strip()}", file=sys.stderr)
        if self.process.poll() is None:
            for _ in range(2):
                try:
                    print(json.dumps(self.fdinfo() if COUNTED else None, indent=1), file=sys.stderr)
                except (Failure, OSError) as reason:
                    print(reason, file=sys.stderr)
                time.sleep(1)
            for task in os.listdir(f"/proc/{self.process.pid}/task"):
                folder = f"/proc/{self.process.pid}/task/{task}"
                print(read(f"{folder}/comm").strip(), read(f"{folder}/schedstat").strip(), file=sys.stderr)
                print(read(f"{folder}/stack"), file=sys.stderr)
        else:
            print(f"QEMU ended with status {self.process.returncode}", file=sys.stderr)
        for path in (self.log, self.qemu_log):
            print(f"--- {path}\n{read(path)[-1500:]}", file=sys.stderr)

    def stop(self):
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "link", "del", self.tap], check=False)


class Monitored(Guest):
    """A QEMU with a monitor."""

    def __init__(self, tap, files, *options, **arguments):
        self.socket = f"/tmp/{tap}.qmp"
        super().__init__(tap, files, "-qmp", f"unix:{self.socket},server=on,wait=off", *options, **arguments)

    def monitor(self):
        end = time.monotonic() + PATIENCE
        connection = socket.socket(socket.AF_UNIX)
        while connection.connect_ex(self.socket):
            self.check_alive()
            if time.monotonic() > end:
                raise Failure("QEMU has no monitor")
            time.sleep(0.1)
        connection.settimeout(PATIENCE)
        self.qmp = connection.makefile("rw")
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            print(json.dumps({"execute": command, "arguments": arguments}), file=self.qmp, flush=True)
            for line in self.qmp:
                answer = json.loads(line)
                if "error" in answer:
                    raise Failure(f"{command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.wait_until_ended()
        self.check_alive()
        raise Failure(f"{command}: QEMU closed its monitor")
