"""A real S3 server on this machine: SeaweedFS, which a package brings as one program."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

KEY, SECRET = "AKIAPLANTEDKEY000001", "planted/secret+of+the+owner"
READER_KEY, READER_SECRET = "AKIAPLANTEDKEY000002", "planted/secret+of+a+reader"
SECRETS = (KEY, SECRET, READER_KEY, READER_SECRET)
CORPUS, VECTORS = "corpus", "vectors"  # buckets; the reader may only read the first


@dataclass(frozen=True)
class S3Server:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def environment_of(url: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """Return the environment variables by which any client finds the server."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run the server with its files in `folder`, which has to be empty; skip the test if it is not installed."""
    program = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no S3 server: make test-stores installs SeaweedFS")
    pytest.importorskip("s3fs", reason="s3fs is not installed: it is in the extra s3")
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    identities = [
        {
            "name": "owner",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": [f"Read:{CORPUS}", f"List:{CORPUS}"],
        },
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-volume.max=100", "-s3"]
    options += ["-master.volumeSizeLimitMB=1024", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false"]
    options += [
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    for _ in range(3):  # another process may take one of the ports before the server does
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        with (folder / "server.log").open("wb") as log:
            command = [program, "server", *options, *(f"-{name}={port}" for name, port in ports.items())]
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            found = S3Server(ports["s3.port"])
            if _answers(found.url, server):
                yield found
                return
        finally:
            server.kill()
            server.wait()
    pytest.fail("the S3 server did not start")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _answers(url: str, server: "subprocess.Popen[bytes]", seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with suppress(HTTPError, OSError):
            try:
                urlopen(url, timeout=5).close()
            except HTTPError as answer:  # it answers, though it refuses requests without credentials
                answer.close()
            return True
        time.sleep(0.1)
    return False
