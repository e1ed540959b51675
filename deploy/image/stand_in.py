"""A stand-in for the image of Rust that the Containerfile compiles in, for machines that reach no registry of images.

It has next to nothing in it: the compilers, linkers and libraries of this machine are mounted into the build, read-only. Crates come
from where cargo has them from.
"""

import pathlib
import shutil
import subprocess

NAME = "localhost/relay-stand-in"
# Of a Debian with merged /usr.
MOUNTED = ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/include", "/usr/share", "/etc/alternatives"]
TOOLCHAIN, CARGO = "/usr/local/toolchain", "/usr/local/cargo"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def make(run, buildah, work):
    """Builds it, and returns the arguments of a build that takes it."""
    context = work / "stand-in"
    files = context / "files"
    for folder in [*MOUNTED, TOOLCHAIN, CARGO, "/tmp", "/var/tmp", str(pathlib.Path(CERTIFICATES).parent)]:
        (files / folder[1:]).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (files / link).symlink_to(f"usr/{link}")
    shutil.copy(CERTIFICATES, files / CERTIFICATES[1:])
    (files / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    text = f"FROM scratch\nCOPY files /\nENV PATH={TOOLCHAIN}/bin:/usr/bin:/bin CARGO_HOME={CARGO}\n"
    (context / "Containerfile").write_text(text)
    run(*buildah, "build", "--isolation", "chroot", "--tag", NAME, "--file", context / "Containerfile", context)
    # The proxies of rustup would look for a toolchain of their own: what they lead to is mounted.
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    mounts = [(each, each) for each in MOUNTED if pathlib.Path(each).is_dir()] + [(pathlib.Path(sysroot).resolve(), TOOLCHAIN)]
    volumes = [f"--volume={here}:{there}:ro" for here, there in mounts]
    return [f"--build-arg=RUST_IMAGE={NAME}", "--pull-never", *volumes]
