"""Builds all test images: OCI layouts, a docker archive and the storage folder of a registry that holds them.

Usage: build.py SYSROOT OUT REGISTRY-ADDRESS   (the registry is up and stores in OUT/registry; OUT is otherwise empty)
"""

import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import content
import oci


def spoil(storage, image):
    """Changes one byte of the image's last layer in the registry's storage; the registry serves it as it finds it."""
    key = image.layers[-1].digest[7:]
    path = os.path.join(storage, "docker", "registry", "v2", "blobs", "sha256", key[:2], key, "data")
    with open(path, "r+b") as f:
        f.seek(-1, os.SEEK_END)
        last = f.read(1)
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last[0] ^ 0xFF]))


def main():
    sysroot, out, address = sys.argv[1:]
    with tempfile.TemporaryDirectory() as work:
        images, archives = content.build(content.Sysroot(sysroot), work)
    oci.write_layouts(os.path.join(out, "layout"), {
        name: image for name, image in images.items() if "test-bad-" not in name})
    os.makedirs(os.path.join(out, "docker-archive"), exist_ok=True)
    for name, image in archives.items():
        image.docker_archive(os.path.join(out, "docker-archive", name.rsplit("/", 1)[1].split(":")[0] + ".tar"), name)
    registry = oci.Registry(address)
    for name, image in images.items():
        registry.push(name, image)
    spoil(os.path.join(out, "registry"), images["docker.io/crisp/test-bad-layer:1"])
    with open(os.path.join(out, "digests.json"), "w", encoding="utf-8") as f:
        json.dump({name: image.descriptor()["digest"] for name, image in images.items()}, f, indent=1, sort_keys=True)
        f.write("\n")
    print(f"{len(images)} images")


main()
