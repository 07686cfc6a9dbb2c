"""What the test images hold: the public images that the manifests under examples/ name, those that critest pulls, and
images whose form is the point (whiteouts, zstd, several platforms, broken ones).

Content comes from Debian packages unpacked in one folder (the sysroot) and from the C file next to this one.
"""

import os
import subprocess

from oci import Image, Index, Layer, Tree

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CRITEST = "gcr.io/k8s-staging-cri-tools/"
E2E = "registry.k8s.io/e2e-test-images/"


class Sysroot:
    """Unpacked Debian packages, and how to take programs out of them with the libraries they need."""

    def __init__(self, root):
        self.root = root
        self.triplet = "x86_64-linux-gnu"

    def path(self, *candidates):
        for candidate in candidates:
            path = os.path.join(self.root, candidate)
            if os.path.lexists(path):
                return path
        raise SystemExit(f"hack/images: none of {candidates} in the unpacked packages")

    def loader(self):
        return os.path.realpath(self.path(f"lib/{self.triplet}/ld-linux-x86-64.so.2",
                                          f"usr/lib/{self.triplet}/ld-linux-x86-64.so.2"))

    def libraries(self):
        return ":".join(os.path.join(self.root, d, self.triplet) for d in ("lib", "usr/lib"))

    def run(self, program, *args, env=None):
        """Runs one of the sysroot's programs with the sysroot's own loader and libraries (a static one needs neither)."""
        static = subprocess.run([self.loader(), "--verify", program], check=False).returncode != 0
        command = [program, *args] if static else [self.loader(), "--library-path", self.libraries(), program, *args]
        return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    def needed(self, binary):
        """Library files that `binary` is linked with, transitively."""
        out = subprocess.run([self.loader(), "--library-path", self.libraries(), "--list", binary],
                             check=True, stdout=subprocess.PIPE, text=True).stdout
        found = []
        for line in out.splitlines():
            words = line.split()
            if "=>" not in words:
                continue
            if words[2] == "not":
                raise SystemExit(f"hack/images: {binary} needs {words[0]}, which no package has")
            if not words[0].startswith("/"):
                found.append((words[0], words[2]))
        return found

    def program(self, tree, source, path):
        """Adds a program and its libraries, at places where the loader finds them without a cache."""
        source = os.path.realpath(source)
        tree.copy(source, path, 0o755)
        for name, library in self.needed(source):
            tree.copy(os.path.realpath(library), f"lib/{self.triplet}/{name}", 0o755)
        return tree.copy(self.loader(), "lib64/ld-linux-x86-64.so.2", 0o755)


def accounts(passwd=(), group=()):
    """A layer's /etc/passwd and /etc/group on top of the usual accounts."""
    users = ["root:x:0:0:root:/root:/bin/sh", "daemon:x:1:1:daemon:/usr/sbin:/bin/false",
             "www-data:x:33:33:www-data:/var/www:/bin/false", *passwd,
             "nobody:x:65534:65534:nobody:/home:/bin/false"]
    groups = ["root:x:0:", "daemon:x:1:", "wheel:x:10:root", "www-data:x:33:", *group, "nogroup:x:65534:"]
    return "\n".join(users) + "\n", "\n".join(groups) + "\n"


# Stand-ins for two programs that Debian's builds leave out and critest asks for.
PGREP = '#!/bin/sh\nfound=$(pidof "$1") || exit 1\nprintf "%s\\n" $found\n'
IPCS = '#!/bin/sh\n[ "$*" = -m ] || { echo "ipcs: only -m is known" >&2; exit 1; }\nexec cat /proc/sysvipc/shm\n'


def busybox_tree(sysroot, binary=None):
    """A root file system of busybox alone: the static build, whose shell runs an applet before it looks at PATH, or
    another build with its libraries."""
    tree = Tree()
    if binary:
        sysroot.program(tree, binary, "bin/busybox")
    else:
        binary = os.path.realpath(sysroot.path("bin/busybox", "usr/bin/busybox"))
        tree.copy(binary, "bin/busybox", 0o755)
    applets = sysroot.run(binary, "--list-full").split()
    for applet in applets:
        if applet not in ("linuxrc", "bin/busybox"):
            tree.hardlink(applet, "bin/busybox")
    for name, script in (("usr/bin/pgrep", PGREP), ("usr/bin/ipcs", IPCS)):
        if name not in applets:
            tree.file(name, script, 0o755)
    passwd, group = accounts()
    tree.file("etc/passwd", passwd).file("etc/group", group).file("etc/shadow", "root:*:::::::\n", 0o640)
    tree.dir("tmp", 0o1777).dir("root", 0o700).dir("home").dir("var/tmp", 0o1777).dir("var/run").dir("run")
    return tree.dir("proc").dir("sys").dir("dev").dir("usr/local/bin")


def nginx_tree(sysroot, port=80, access_log="/var/log/nginx/access.log", error_log="/var/log/nginx/error.log"):
    tree = sysroot.program(Tree(), sysroot.path("usr/sbin/nginx"), "usr/sbin/nginx")
    tree.copy(sysroot.path("etc/nginx/mime.types"), "etc/nginx/mime.types")
    tree.file("etc/nginx/nginx.conf", f"""\
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log {error_log} notice;
events {{ worker_connections 512; }}
http {{
  include mime.types;
  access_log {access_log};
  server {{
    listen {port};
    listen [::]:{port};
    root /usr/share/nginx/html;
  }}
}}
""")
    tree.file("usr/share/nginx/html/index.html",
              "<!DOCTYPE html>\n<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n")
    tree.dir("var/log/nginx", uid=0).dir("var/run")
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        tree.dir(f"var/lib/nginx/{name}", 0o700, uid=33)
    return tree


NGINX = {"Env": [PATH], "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"}

# Parts of Python's library that no test imports.
PYTHON_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "pydoc_data",
                   "unittest", "sqlite3", "venv", "asyncio", "multiprocessing", "concurrent", "curses", "dbm",
                   "xml", "xmlrpc", "wsgiref", "__pycache__"}


def python_tree(sysroot, work):
    binary = os.path.realpath(sysroot.path("usr/bin/python3"))
    version = os.path.basename(binary)
    library = sysroot.path(f"usr/lib/{version}")
    staged = os.path.join(work, "python", "usr", "lib", version)
    os.makedirs(staged)
    for name in sorted(os.listdir(library)):
        if name not in PYTHON_LEFT_OUT and not name.startswith("config-"):
            subprocess.run(["cp", "-a", os.path.join(library, name), staged], check=True)
    modules = os.path.join(staged, "lib-dynload")
    # Without _ssl and _hashlib nothing drags in OpenSSL at start; hashlib has its own code for the common digests.
    for name in sorted(os.listdir(modules)):
        if name.split(".")[0] not in ("_ctypes", "_json", "_bz2", "_lzma", "mmap", "termios", "readline", "_queue"):
            os.unlink(os.path.join(modules, name))
        if name.startswith("readline"):
            os.unlink(os.path.join(modules, name))
    # Byte code whose validity does not hang on file times, so that nothing is compiled at start.
    sysroot.run(binary, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
                "-s", os.path.join(work, "python"), "-p", "/", staged,
                env={"PYTHONHOME": os.path.join(sysroot.root, "usr"), "PATH": os.environ["PATH"],
                     "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"})
    tree = sysroot.program(Tree(), binary, f"usr/bin/{version}")
    for module in sorted(os.listdir(modules)):
        if module.endswith(".so"):
            for name, found in sysroot.needed(os.path.join(modules, module)):
                tree.copy(os.path.realpath(found), f"lib/{sysroot.triplet}/{name}", 0o755)
    tree.symlink("usr/bin/python3", version).symlink("usr/bin/python", version)
    return tree.copy(staged, f"usr/lib/{version}")


def redis_tree(sysroot):
    tree = sysroot.program(Tree(), sysroot.path("usr/bin/redis-server"), "usr/bin/redis-server")
    sysroot.program(tree, sysroot.path("usr/bin/redis-cli"), "usr/bin/redis-cli")
    return tree.dir("data").dir("data/redis")


NODE_SERVER = """\
const http = require('http');
http.createServer((request, response) => {
  console.log(request.method, request.url);
  response.end('Hello World from our Kubernetes Pod Demo\\n');
}).listen(3000, () => console.log('listening on 3000'));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
"""


def node_tree(sysroot):
    tree = sysroot.program(Tree(), sysroot.path("usr/bin/node"), "usr/bin/node")
    tree.copy(sysroot.path("usr/share/nodejs"), "usr/share/nodejs")
    return tree.file("app/server.js", NODE_SERVER).file("app/package.json", '{"name":"demo","main":"server.js"}\n')


FORWARDER = """\
#!/bin/sh
# Forwards what a web server writes to /var/log/nginx, and tries once to write there, which a read-only mount refuses.
touch /var/log/nginx/forwarder.pos
exec tail -q -n +1 -F /var/log/nginx/access.log
"""

HTTPD = """\
#!/bin/sh
echo "httpd -D FOREGROUND"
exec httpd -f -vv -p 80 -h /usr/local/apache2/htdocs
"""


def whiteout_image(base):
    """Three layers over one another; /expect.txt lists what must be left of /data, one `find` line an entry."""
    below = Tree()
    for name in ("keep", "gone", "dir/a", "dir/b", "opaque/old1", "opaque/sub/old2", "file-to-dir",
                 "dir-to-file/inner", "removed-dir/x", "relinked"):
        below.file("data/" + name, name + "\n")
    below.symlink("data/link", "keep").hardlink("data/hard", "data/keep")
    above = Tree()
    above.whiteout("data/gone").whiteout("data/dir/a").whiteout("data/removed-dir").opaque("data/opaque")
    above.file("data/opaque/new", "new\n").file("data/file-to-dir/inner", "inner\n").file("data/dir-to-file", "file\n")
    above.symlink("data/relinked", "dir/b").fifo("data/fifo").file("data/setuid", "x", 0o4755, uid=1000, gid=1000)
    above.file("data/attr", "x", xattrs={"user.crisp": "value"})
    left = ["", "/attr", "/dir", "/dir-to-file", "/dir/b", "/fifo", "/file-to-dir", "/file-to-dir/inner", "/hard",
            "/keep", "/link", "/opaque", "/opaque/new", "/relinked", "/setuid"]
    expect = Tree().file("expect.txt", "".join(f"/data{name}\n" for name in left))
    return Image([base, Layer(below), Layer(above), Layer(expect)], {"Env": [PATH], "Cmd": ["sh"]})


def build(sysroot, work):
    """Returns {full reference with tag: image}."""
    base = Layer(busybox_tree(sysroot))
    shell = {"Env": [PATH], "Cmd": ["sh"]}
    busybox = Image([base], shell)

    def marked(name, config=shell, tree=None):
        return Image([base, Layer((tree or Tree()).file(name, name + "\n"))], config)

    nginx_layer = Layer(nginx_tree(sysroot))
    nginx = Image([base, nginx_layer], NGINX)
    python = Image([base, Layer(python_tree(sysroot, work))], {"Env": [PATH], "Cmd": ["python3"]})
    redis = Image([base, Layer(redis_tree(sysroot))], {
        "Env": [PATH], "WorkingDir": "/data", "Entrypoint": ["redis-server", "--protected-mode", "no"],
        "Volumes": {"/data": {}}, "ExposedPorts": {"6379/tcp": {}}})
    node = Image([base, Layer(node_tree(sysroot))], {
        "Env": [PATH], "WorkingDir": "/app", "Cmd": ["node", "server.js"], "ExposedPorts": {"3000/tcp": {}}})
    fluentd = Image([base, Layer(Tree().file("usr/local/bin/fluentd", FORWARDER, 0o755))],
                    {"Env": [PATH], "Entrypoint": ["/usr/local/bin/fluentd"]})
    images = {
        "docker.io/library/busybox:latest": busybox,
        "docker.io/library/busybox:1.36": busybox,
        "docker.io/library/nginx:latest": nginx,
        "docker.io/library/nginx:1.25": nginx,
        "docker.io/library/python:3.9": python,
        "docker.io/library/redis:latest": redis,
        "docker.io/progressivecoder/nodejs-demo:latest": node,
        "docker.io/fluent/fluentd:v1.16": fluentd,
    }

    # critest
    logged = Image([base, Layer(nginx_tree(sysroot, access_log="/dev/stdout", error_log="/dev/stderr"))], NGINX)
    host = Image([base, Layer(nginx_tree(sysroot, 12003, "/dev/stdout", "/dev/stderr"))], NGINX)
    httpd = Tree().file("usr/local/bin/httpd-foreground", HTTPD, 0o755)
    httpd.file("usr/local/apache2/htdocs/index.html", "<html><body><h1>It works!</h1></body></html>\n")
    effective = os.path.join(work, "nnp")
    subprocess.run(["gcc", "-static", "-Os", "-s", "-o", effective,
                    os.path.join(os.path.dirname(os.path.abspath(__file__)), "nnp.c")], check=True)
    with open(effective, "rb") as f:
        nnp = Tree().file("nnp", f.read(), 0o4755)
    images.update({
        # The dynamic build: critest masks /bin/ls and expects the shell to fail on it.
        E2E + "busybox:1.29-2": Image([Layer(busybox_tree(sysroot, sysroot.path(
            "busybox/bin/busybox", "busybox/usr/bin/busybox")))], shell),
        E2E + "nginx:1.14-2": logged,
        E2E + "httpd:2.4.39-4": Image([base, Layer(httpd)], {"Env": [PATH], "Cmd": ["httpd-foreground"]}),
        E2E + "nonewprivs:1.3": Image([base, Layer(nnp)], {"Env": [PATH], "Entrypoint": ["/nnp"]}),
        CRITEST + "hostnet-nginx-amd64:latest": host,
        CRITEST + "test-image-latest:latest": marked("test-image-latest"),
        CRITEST + "test-image-tag:test": marked("test-image-tag-test"),
        CRITEST + "test-image-tag:all": marked("test-image-tag-all"),
        CRITEST + "test-image-digest:test": marked("test-image-digest"),
    })
    for n in ("1", "2", "3"):
        images[f"{CRITEST}test-image-{n}:latest"] = marked("test-image-" + n)
    tags = marked("test-image-tags")
    images.update({f"{CRITEST}test-image-tags:{n}": tags for n in ("1", "2", "3")})
    for name, user in (("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"),
                       ("username-group", "www-data:1004")):
        images[f"{CRITEST}test-image-user-{name}:latest"] = Image([base], {**shell, "User": user})
    passwd, group = accounts(["default-user:x:1000:1000::/home/default-user:/bin/sh"],
                             ["default-user:x:1000:", "group-defined-in-image:x:50000:default-user"])
    images[CRITEST + "test-image-predefined-group:latest"] = Image(
        [base, Layer(Tree().file("etc/passwd", passwd).file("etc/group", group))], {**shell, "User": "1000"})
    pause = marked("pause", {"Env": [PATH], "Entrypoint": ["tail", "-f", "/dev/null"]})
    images.update({"registry.k8s.io/pause:3.9": pause, "k8s.gcr.io/pause:3.9": pause})

    # Images whose form is the point.
    passwd, group = accounts(["app:x:1234:1234::/home/app:/bin/sh"],
                             ["app:x:1234:", "audio:x:29:app", "extra:x:4321:someone,app"])
    user = Tree().file("etc/passwd", passwd).file("etc/group", group).dir("home/app", 0o750, 1234, 1234)
    other = Image([Layer(Tree().file("arch", "arm64\n"))], shell, architecture="arm64")
    statement = Image([Layer(Tree().file("attestation", "{}\n"))], {}, architecture="unknown", os_="unknown")
    content = Tree().file("format", "the same content in another form\n")
    docker = Image([base, Layer(content)], shell, docker=True)
    images.update({
        "docker.io/crisp/test-whiteout:1": whiteout_image(base),
        "docker.io/crisp/test-gzip:1": Image([base, Layer(content)], shell),
        "docker.io/crisp/test-zstd:1": Image([base, Layer(content, "zstd")], shell),
        "docker.io/crisp/test-plain:1": Image([base, Layer(content, "none")], shell),
        "docker.io/crisp/test-docker:1": docker,
        "docker.io/crisp/test-multiarch:1": Index([other, marked("amd64"), statement]),
        "docker.io/crisp/test-other-arch:1": Index([other]),
        "docker.io/crisp/test-user:1": Image([base, Layer(user)], {
            **shell, "User": "app", "WorkingDir": "/home/app", "Env": [PATH, "HOME=/home/app", "FROM_IMAGE=yes"],
            "Volumes": {"/declared": {}}, "Labels": {"crisp.test": "user"}}),
        # The config lists another tree's diff id: every blob is what its digest says, and the layer still is not.
        "docker.io/crisp/test-bad-diff-id:1": Image(
            [base, Layer(Tree().file("a", "a"))], shell, diff_ids=[base.diff_id, Layer(Tree().file("b", "b")).diff_id]),
        # One byte of the last layer is changed in the registry's store after the push.
        "docker.io/crisp/test-bad-layer:1": marked("test-bad-layer"),
    })
    return images, {"docker.io/crisp/test-docker:1": docker}
