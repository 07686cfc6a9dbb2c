"""Writes OCI images: layers, configs, manifests and indexes, byte for byte the same from the same input.

Standard library only (and the zstd program for zstd layers). Knows the image formats, not what goes into an image.
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import subprocess
import tarfile
import urllib.parse

# One fixed time for everything: 2023-11-14T22:13:20Z.
EPOCH = 1_700_000_000
CREATED = "2023-11-14T22:13:20Z"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class Tree:
    """The content of one layer: path (no leading slash) -> tar entry. Parents are added when it is packed."""

    def __init__(self):
        self.entries = {}

    def _add(self, path, kind, mode, uid, gid, data=b"", link="", xattrs=None):
        path = path.strip("/")
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.uid, info.gid, info.mtime, info.linkname = kind, mode, uid, gid, EPOCH, link
        info.size = len(data)
        for name, value in (xattrs or {}).items():
            info.pax_headers["SCHILY.xattr." + name] = value
        self.entries[path] = (info, data)
        return self

    def file(self, path, data, mode=0o644, uid=0, gid=0, xattrs=None):
        data = data.encode() if isinstance(data, str) else data
        return self._add(path, tarfile.REGTYPE, mode, uid, gid, data, xattrs=xattrs)

    def dir(self, path, mode=0o755, uid=0, gid=0):
        return self._add(path, tarfile.DIRTYPE, mode, uid, gid)

    def symlink(self, path, target):
        return self._add(path, tarfile.SYMTYPE, 0o777, 0, 0, link=target)

    def hardlink(self, path, target):
        return self._add(path, tarfile.LNKTYPE, 0o755, 0, 0, link=target.strip("/"))

    def fifo(self, path, mode=0o644):
        return self._add(path, tarfile.FIFOTYPE, mode, 0, 0)

    def whiteout(self, path):
        folder, name = os.path.split(path)
        return self.file(os.path.join(folder, ".wh." + name), b"")

    def opaque(self, path):
        return self.dir(path).file(os.path.join(path, ".wh..wh..opq"), b"")

    def copy(self, source, path, mode=None):
        """Copies a file, a symlink or a folder with all below it from the build machine."""
        if os.path.islink(source):
            return self.symlink(path, os.readlink(source))
        if os.path.isdir(source):
            self.dir(path)
            for name in sorted(os.listdir(source)):
                self.copy(os.path.join(source, name), os.path.join(path, name))
            return self
        with open(source, "rb") as f:
            return self.file(path, f.read(), mode or (0o755 if os.access(source, os.X_OK) else 0o644))

    def pack(self):
        for path in list(self.entries):
            parent = os.path.dirname(path)
            while parent and parent not in self.entries:
                self.dir(parent)
                parent = os.path.dirname(parent)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # Hard links after the files they name; an opaque mark before its folder's own entries, as layers have it.
            order = sorted(self.entries, key=lambda p: (self.entries[p][0].type == tarfile.LNKTYPE, p))
            for path in order:
                info, data = self.entries[path]
                tar.addfile(info, io.BytesIO(data) if info.type == tarfile.REGTYPE else None)
        return out.getvalue()


class Layer:
    """One packed and compressed layer."""

    def __init__(self, tree, compression="gzip"):
        tar = tree.pack() if isinstance(tree, Tree) else tree
        self.diff_id = digest(tar)
        self.compression = compression
        if compression == "gzip":
            out = io.BytesIO()
            with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0, filename="") as f:
                f.write(tar)
            self.blob = out.getvalue()
        elif compression == "zstd":
            self.blob = subprocess.run(["zstd", "-q", "-c", "-9"], input=tar, stdout=subprocess.PIPE, check=True).stdout
        else:
            self.blob = tar
        self.tar = tar
        self.digest = digest(self.blob)

    def media_type(self, docker):
        if docker:
            return DOCKER_LAYER + (".gzip" if self.compression == "gzip" else "")
        return OCI_LAYER + {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[self.compression]


class Image:
    """A manifest with its config and layers. `config` holds the fields of the OCI image config's `config` object."""

    def __init__(self, layers, config=None, architecture="amd64", os_="linux", docker=False, diff_ids=None):
        self.layers, self.docker = layers, docker
        self.platform = {"architecture": architecture, "os": os_}
        self.config = encode({
            "architecture": architecture, "os": os_, "created": CREATED, "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [layer.diff_id for layer in layers]},
            "history": [{"created": CREATED, "created_by": "hack/images"} for _ in layers],
        })
        self.media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        self.manifest = encode({
            "schemaVersion": 2, "mediaType": self.media_type,
            "config": {"mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
                       "digest": digest(self.config), "size": len(self.config)},
            "layers": [{"mediaType": layer.media_type(docker), "digest": layer.digest, "size": len(layer.blob)}
                       for layer in layers],
        })

    def descriptor(self):
        return {"mediaType": self.media_type, "digest": digest(self.manifest), "size": len(self.manifest)}

    def blobs(self):
        """digest -> bytes of everything below the manifest."""
        return {digest(self.config): self.config, **{layer.digest: layer.blob for layer in self.layers}}

    def manifests(self):
        """(digest, media type, bytes), children before parents."""
        return [(digest(self.manifest), self.media_type, self.manifest)]

    def docker_archive(self, path, name):
        """Writes what `docker save` would: manifest.json, the config and uncompressed layers."""
        tree = Tree()
        config = digest(self.config)[7:] + ".json"
        paths = [layer.diff_id[7:] + "/layer.tar" for layer in self.layers]
        tree.file(config, self.config)
        for at, layer in zip(paths, self.layers):
            tree.file(at, layer.tar)
        tree.file("manifest.json", encode([{"Config": config, "RepoTags": [name], "Layers": paths}]))
        with open(path, "wb") as f:
            f.write(tree.pack())


class Index:
    """A manifest list over images of several platforms."""

    def __init__(self, images):
        self.images, self.media_type = images, OCI_INDEX
        self.index = encode({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": [{**image.descriptor(), "platform": image.platform} for image in images],
        })

    def descriptor(self):
        return {"mediaType": OCI_INDEX, "digest": digest(self.index), "size": len(self.index)}

    def blobs(self):
        return {key: blob for image in self.images for key, blob in image.blobs().items()}

    def manifests(self):
        below = [manifest for image in self.images for manifest in image.manifests()]
        return below + [(digest(self.index), OCI_INDEX, self.index)]


def write_layouts(root, images):
    """Writes an OCI layout for every repository: `root`/<name>/ with one index entry a tag. `images` maps a full
    reference to an image. Blobs that several repositories share are hard links."""
    written, entries = {}, {}
    for name, image in images.items():
        repository, tag = name.rsplit(":", 1)
        folder = os.path.join(root, repository)
        blobs = os.path.join(folder, "blobs", "sha256")
        os.makedirs(blobs, exist_ok=True)
        content = {**image.blobs(), **{key: data for key, _, data in image.manifests()}}
        for key, data in content.items():
            path = os.path.join(blobs, key[7:])
            if os.path.exists(path):
                continue
            if key in written:
                os.link(written[key], path)
                continue
            with open(path, "wb") as f:
                f.write(data)
            written[key] = path
        entries.setdefault(folder, []).append({**image.descriptor(), "annotations": {
            "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name}})
    for folder, manifests in entries.items():
        with open(os.path.join(folder, "oci-layout"), "wb") as f:
            f.write(encode({"imageLayoutVersion": "1.0.0"}))
        with open(os.path.join(folder, "index.json"), "wb") as f:
            f.write(encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))


class Registry:
    """Pushes to a registry by the distribution API (plain HTTP)."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def _call(self, method, path, body=None, headers=None, expect=(200,)):
        self.connection.request(method, path, body=body, headers=headers or {})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status not in expect:
            raise SystemExit(f"hack/images: {method} {path}: {answer.status} {data[:300]!r}")
        return answer

    def push(self, name, image):
        repository, tag = name.split("/", 1)[1].rsplit(":", 1)
        for key, blob in image.blobs().items():
            if self._call("HEAD", f"/v2/{repository}/blobs/{key}", expect=(200, 404)).status == 200:
                continue
            begun = self._call("POST", f"/v2/{repository}/blobs/uploads/", expect=(202,))
            url = urllib.parse.urlsplit(begun.headers["Location"])
            query = (url.query + "&" if url.query else "") + urllib.parse.urlencode({"digest": key})
            self._call("PUT", f"{url.path}?{query}", blob, {"Content-Type": "application/octet-stream"}, (201,))
        manifests = image.manifests()
        for key, media_type, data in manifests:
            last = key == manifests[-1][0]
            self._call("PUT", f"/v2/{repository}/manifests/{tag if last else key}", data,
                       {"Content-Type": media_type}, (201,))
