"""Measures pulls: the same image from the same loopback registry by crisp, by Debian's containerd (crictl pull) and by
skopeo copy to an OCI directory, and what `zcat | tar x` of its layers takes. Prints one table, writes it as JSON.

Usage: pull.py CACHE BINARIES JSON ROUNDS DIRTY     (run through hack/bench --pull, in hack/node, with containerd, skopeo
and docker-registry unpacked in CACHE)

Wall time is from the client's start to its end. CPU seconds are the daemon's own and its children's, for skopeo and the
floor the command's. Peak memory is the largest resident set (VmHWM) of the daemon, or of skopeo. Every pull starts with
an empty store; the registry's files are in the page cache for all of them. All daemons run at once, one works at a time.

DIRTY is a size such as 2G, or 0. Then each is measured a second time beside a process that has just written so much to the
same file system and holds the file open; nobody has synced it. What the table says is left of it is what the kernel had
not written yet when the pull had ended (all dirty memory of the machine): a pull that waits for its own files alone leaves
it alone. All of this on an ext4 of its own in a file, made as mkfs.ext4 makes it: whether a sync waits for others depends
on the file system, and syncs by others of this machine's own file system would be measured, too.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.parse

SIZES = {"200 MB": 200 << 20, "1 GB": 1 << 30}
LAYERS = 6
TICKS = os.sysconf("SC_CLK_TCK")


def corpus(sysroot):
    """Programs, libraries and text of Debian packages, one after the other: what images are made of."""
    pieces, total = [], 0
    for folder, names, files in os.walk(os.path.join(sysroot, "usr")):
        names.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and total < 160 << 20:
                with open(path, "rb") as f:
                    pieces.append(f.read())
                total += len(pieces[-1])
    return b"".join(pieces)


def pack(path, size, dice, text):
    """One gzip layer of about `size` bytes of files; digest, diff id and compressed size."""
    class Hashed:
        def __init__(self, inner):
            self.inner, self.sha = inner, hashlib.sha256()

        def write(self, data):
            self.sha.update(data)
            return self.inner.write(data)

    with open(path, "wb") as f:
        outer = Hashed(f)
        with gzip.GzipFile(fileobj=outer, mode="wb", compresslevel=6, mtime=0, filename="") as g:
            inner = Hashed(g)
            with tarfile.open(fileobj=inner, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                done, number = 0, 0
                while done < size:
                    # Many small files and a few large ones, as in most images.
                    length = dice.choice([800, 3000, 3000, 12000, 12000, 40000, 150000, 600000, 4000000])
                    length = min(length, max(size - done, 1))
                    at = dice.randrange(len(text) - length)
                    if number % 40 == 0:
                        folder = f"opt/{os.path.basename(path)}/d{number // 40}"
                        info = tarfile.TarInfo(folder)
                        info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                        tar.addfile(info)
                    info = tarfile.TarInfo(f"{folder}/f{number}")
                    info.size, info.mode, info.mtime = length, 0o644, 1_700_000_000
                    tar.addfile(info, io.BytesIO(text[at:at + length]))
                    done, number = done + length, number + 1
    return "sha256:" + outer.sha.hexdigest(), "sha256:" + inner.sha.hexdigest(), os.path.getsize(path)


def push(address, name, tag, blobs, manifest):
    connection = http.client.HTTPConnection(address, timeout=600)

    def call(method, path, body, headers, expect):
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != expect:
            raise SystemExit(f"hack/bench: {method} {path}: {answer.status}")
        return answer

    for digest, (path, size) in blobs.items():
        begun = call("POST", f"/v2/{name}/blobs/uploads/", None, {}, 202)
        url = urllib.parse.urlsplit(begun.headers["Location"])
        query = (url.query + "&" if url.query else "") + urllib.parse.urlencode({"digest": digest})
        with open(path, "rb") as f:
            call("PUT", f"{url.path}?{query}", f, {"Content-Length": str(size)}, 201)
    call("PUT", f"/v2/{name}/manifests/{tag}", manifest,
         {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, 201)


def build(folder, sysroot, serve):
    """Makes the images and their registry, once."""
    stamp = os.path.join(folder, "complete")
    with open(__file__, "rb") as f:
        want = hashlib.sha256(f.read().split(b"def push", 1)[0]).hexdigest()
    if os.path.exists(stamp) and open(stamp).read() == want:
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "layers"))
    print("hack/bench: building the images", file=sys.stderr)
    text, dice = corpus(sysroot), random.Random(4)
    facts = {}
    with serve(os.path.join(folder, "registry"), False) as registry:
        for title, size in SIZES.items():
            name = title.replace(" ", "").lower()
            layers, blobs, diff_ids = [], {}, []
            for number in range(LAYERS):
                path = os.path.join(folder, "layers", f"{name}-{number}")
                digest, diff_id, length = pack(path, size // LAYERS, dice, text)
                layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": length})
                blobs[digest] = (path, length)
                diff_ids.append(diff_id)
            config = json.dumps({"architecture": "arm64" if os.uname().machine == "aarch64" else "amd64", "os": "linux",
                                 "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
            path = os.path.join(folder, "layers", f"{name}-config")
            with open(path, "wb") as f:
                f.write(config)
            digest = "sha256:" + hashlib.sha256(config).hexdigest()
            blobs[digest] = (path, len(config))
            manifest = json.dumps({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(config)},
                "layers": layers}).encode()
            push(registry.address, f"bench/{name}", "1", blobs, manifest)
            facts[title] = {"name": f"bench/{name}:1", "bytes": sum(layer["size"] for layer in layers)}
    with open(os.path.join(folder, "facts.json"), "w") as f:
        json.dump(facts, f)
    with open(stamp, "w") as f:
        f.write(want)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """A daemon, killed by its pid at the end."""

    def __init__(self, command, log, ready):
        self.log = open(log, "wb")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        limit = time.monotonic() + 60
        while not ready():
            if self.child.poll() is not None or time.monotonic() > limit:
                self.child.kill()
                raise SystemExit(f"hack/bench: {command[0]} does not answer, see {log}:\n{open(log).read()[-2000:]}")
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()
        self.log.close()

    def cpu(self):
        """Seconds of the process and of the children that it has waited for."""
        with open(f"/proc/{self.child.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return sum(int(fields[i]) for i in (11, 12, 13, 14)) / TICKS

    def peak(self):
        with open(f"/proc/{self.child.pid}/status") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmHWM:"))


def listening(port):
    def ready():
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False
    return ready


def run(command):
    """Wall time, CPU seconds and peak memory of a command."""
    log = os.path.join(os.environ["CRISP_NODE_DIR"], "command.log")
    started = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)])
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        raise SystemExit(f"hack/bench: {' '.join(command)} failed:\n{open(log).read()[-2000:]}")
    return {"wall": time.monotonic() - started, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss << 10}


class Neighbour:
    """A process that has `size` bytes of a file of its own in the page cache, not yet on the disk."""

    CODE = """
import os, sys
size, block = int(sys.argv[2]), os.urandom(1 << 20)
f = open(sys.argv[1], "wb", buffering=0)
for _ in range(size >> 20):
    f.write(block)
print("dirty", flush=True)
sys.stdin.read()
"""

    def __init__(self, folder, size):
        self.path, self.size, self.child, self.left = os.path.join(folder, "neighbour"), size, None, None

    def start(self):
        self.child = subprocess.Popen([sys.executable, "-c", self.CODE, self.path, str(self.size)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.child.stdout.readline() != b"dirty\n":
            raise SystemExit("hack/bench: the process that dirties memory failed")

    def stop(self):
        with open("/proc/meminfo") as f:
            self.left = sum(int(line.split()[1]) << 10 for line in f if line.startswith(("Dirty:", "Writeback:")))
        self.child.stdin.close()
        self.child.wait()
        # What is not written yet never will be.
        os.unlink(self.path)


def mount_own_disk(folder):
    """An ext4 file system in a file, mounted over `folder`; both are gone with the mount namespace and hack/node's folder."""
    file = folder + ".disk"
    with open(file, "wb") as f:
        f.truncate(12 << 30)
    eager = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-E", eager, file], check=True)
    # Without direct I/O everything would be dirty twice.
    device = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", file], check=True, capture_output=True,
                            text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, folder], check=True)
    finally:
        # As soon as it is not mounted any more.
        subprocess.run(["losetup", "--detach", device], check=True)


def size_of(text):
    """Bytes of a size such as 512M or 2G."""
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    number = text[:-1] if unit else text
    if not number.isdigit():
        raise SystemExit(f"hack/bench: {text!r} is no size, such as 2G")
    return int(number) << (unit or 0)


def main():
    cache, binaries, report, rounds, dirty = sys.argv[1:]
    dirty = size_of(dirty)
    sysroot, tools = os.path.join(cache, "sysroot"), os.path.join(cache, "pull-tools")
    os.environ["PATH"] = os.pathsep.join([binaries, os.path.join(cache, "bin"), os.path.join(tools, "usr/bin"),
                                          os.path.join(tools, "usr/sbin"), os.environ["PATH"]])
    # Its libraries are not installed either.
    libraries = [os.path.join(folder, name) for folder in (os.path.join(tools, "usr/lib"), os.path.join(tools, "lib"))
                 for name in (os.listdir(folder) if os.path.isdir(folder) else []) if name.endswith("-linux-gnu")]
    skopeo_command = ["env", "LD_LIBRARY_PATH=" + ":".join(libraries), "skopeo"]
    work = os.path.join(os.environ["CRISP_NODE_DIR"], "pull")
    os.makedirs(work)
    if dirty:
        mount_own_disk(work)

    def serve(storage, readonly):
        port = free_port()
        config = os.path.join(work, f"registry-{port}.yml")
        with open(config, "w") as f:
            json.dump({"version": "0.1", "log": {"level": "error", "accesslog": {"disabled": True}},
                       "storage": {"filesystem": {"rootdirectory": storage},
                                   "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": readonly}}},
                       "http": {"addr": f"127.0.0.1:{port}"}}, f)
        program = os.path.join(sysroot, "usr/bin/docker-registry")
        process = Process([program, "serve", config], config + ".log", listening(port))
        process.address = f"127.0.0.1:{port}"
        return process

    images = os.path.join(cache, "bench-images")
    build(images, sysroot, serve)
    with open(os.path.join(images, "facts.json")) as f:
        facts = json.load(f)

    with serve(os.path.join(images, "registry"), True) as registry:
        hosts = os.path.join(work, "hosts")
        os.makedirs(os.path.join(hosts, registry.address))
        with open(os.path.join(hosts, registry.address, "hosts.toml"), "w") as f:
            f.write(f'server = "http://{registry.address}"\n')

        neighbour = None

        def timed(work):
            """Runs what is measured on a disk that has nothing else to do, but for the neighbour if there is one."""
            os.sync()
            if neighbour:
                neighbour.start()
            numbers = work()
            if neighbour:
                neighbour.stop()
                numbers["left"] = neighbour.left
            return numbers

        def crictl(endpoint, reference):
            return run(["crictl", "--timeout", "600s", "-r", endpoint, "-i", endpoint, "pull", reference])

        def answers(endpoint):
            return lambda: subprocess.run(["crictl", "--timeout", "5s", "-r", endpoint, "-i", endpoint, "images"],
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

        def pull_with(daemon, reference, endpoint):
            before = daemon.cpu()
            numbers = timed(lambda: crictl(endpoint, reference))
            return {**numbers, "cpu": daemon.cpu() - before, "peak": daemon.peak()}

        def crisp(reference):
            place = os.path.join(work, "crisp")
            os.makedirs(place)
            config, endpoint = os.path.join(place, "config.toml"), f"unix://{place}/crisp.sock"
            with open(config, "w") as f:
                f.write(f'[image]\nhosts_dir = "{hosts}"\n[cgroup]\nrequire_controllers = false\n')
            command = ["crisp", "serve", "--config", config, "--listen", endpoint, "--root", f"{place}/root",
                       "--state", "/run/crisp-bench"]
            with Process(command, os.path.join(work, "crisp.log"), answers(endpoint)) as daemon:
                numbers = pull_with(daemon, reference, endpoint)
            shutil.rmtree(place)
            return numbers

        def containerd(reference):
            place = os.path.join(work, "containerd")
            os.makedirs(place)
            config, endpoint = os.path.join(place, "config.toml"), f"unix://{place}/c.sock"
            with open(config, "w") as f:
                f.write(f'version = 2\nroot = "{place}/root"\nstate = "/run/containerd-bench"\n'
                        f'[grpc]\naddress = "{place}/c.sock"\n'
                        '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "overlayfs"\n'
                        f'[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{hosts}"\n')
            with Process(["containerd", "--config", config], os.path.join(work, "containerd.log"),
                         answers(endpoint)) as daemon:
                numbers = pull_with(daemon, reference, endpoint)
            subprocess.run(["umount", "-R", "/run/containerd-bench"], stderr=subprocess.DEVNULL)
            shutil.rmtree(place)
            return numbers

        def skopeo(reference):
            target = os.path.join(work, "skopeo")
            command = [*skopeo_command, "copy", "--insecure-policy", "--src-tls-verify=false", "--quiet",
                       f"docker://{reference}", f"oci:{target}:1"]
            numbers = timed(lambda: run(command))
            shutil.rmtree(target)
            return numbers

        def floor(title):
            name, target = title.replace(" ", "").lower(), os.path.join(work, "floor")
            os.makedirs(target)
            lines = "".join(f"mkdir {target}/{n}; zcat <{images}/layers/{name}-{n} | tar x -C {target}/{n}; "
                            for n in range(LAYERS))
            numbers = timed(lambda: run(["sh", "-ec", lines]))
            shutil.rmtree(target)
            return {**numbers, "peak": None}

        def median(measure):
            samples = sorted((measure() for _ in range(int(rounds))), key=lambda n: n["wall"])
            middle = samples[len(samples) // 2]
            peaks = [s["peak"] for s in samples if s["peak"]]
            middle["peak"] = max(peaks) if peaks else None
            return middle

        versions = [subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.strip()
                    for command in (["containerd"], skopeo_command)]
        print("\n".join(versions))
        results = {}
        for title, fact in facts.items():
            reference = f"{registry.address}/{fact['name']}"
            ways = {"crisp": lambda: crisp(reference), "containerd": lambda: containerd(reference),
                    "skopeo copy": lambda: skopeo(reference), "zcat | tar x": lambda: floor(title)}
            print(f"\n{title} of files, {LAYERS} gzip layers, {fact['bytes'] / 1e6:.0f} MB compressed")
            beside = f" {'beside s':>9} {'ratio':>6} {'left MB':>8}" if dirty else ""
            print(f"  {'':<14} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}{beside}")
            results[title] = {}
            for way, measure in ways.items():
                middle = median(measure)
                peak = f"{middle['peak'] / (1 << 20):.0f}" if middle["peak"] else ""
                line = f"  {way:<14} {middle['wall']:>8.2f} {middle['cpu']:>8.2f} {peak:>9}"
                results[title][way] = middle
                if dirty:
                    neighbour = Neighbour(work, dirty)
                    middle["beside"] = busy = median(measure)
                    neighbour = None
                    line += f" {busy['wall']:>9.2f} {busy['wall'] / middle['wall']:>6.2f} {busy['left'] / 1e6:>8.0f}"
                print(line, flush=True)
    with open(report, "w") as f:
        json.dump({"versions": versions, "dirty": dirty, "images": facts, "results": results}, f, indent=1)
    print(f"\nnumbers: {report}")


main()
