"""Which file system an address names (pyarrow.fs), and that it holds no credential.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_CLIENT_ID,
~/.netrc, an instance's role): a url that holds one is refused, since urls are logged and saved with a run.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pyarrow as pa
from pyarrow import fs

from scaleaudio.errors import InputError

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "http", "https")
# Parts of the names of query keys whose values are no one else's business: access_key, X-Amz-Signature, sas_token;
# and whole names, which would be parts of harmless ones.
_SECRETS = ("key", "secret", "token", "password", "passwd", "pwd", "signature", "credential", "authorization", "jwt")
_SECRET_NAMES = ("sig", "auth", "oauth", "code")
_HOST = re.compile(r"^(\[[^\]]*\]|[^:]*)(:\d+)?$")
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def open_url(url: str, *, reading: bool = False) -> tuple[Any, str]:
    """The (pyarrow FileSystem, path inside it) that `url` names; nothing is read yet.

    Reading gives up after a quarter of a minute, so that who reads decides about more; all else tries for minutes.

    `AWS_ENDPOINT_URL` in the environment names the server of `s3://` urls that give no `endpoint_override` themselves.

    Raises:
        InputError: for `pipe:` (it would run a shell), for an unknown scheme, for an address that cannot be parsed, and
            for one that holds credentials.
    """
    if not url:
        raise InputError("an empty path: expected a folder, file or URL. Is a variable of the command line unset?")
    if url.lower().startswith("pipe:"):
        raise InputError(f'"{url}": pipe: addresses run a shell and are refused. Give a path or one of {_schemes()}')
    match = SCHEME.match(url)
    if match is None:
        return _local_filesystem(), str(Path(url).expanduser().absolute())
    if match[1].lower() not in SCHEMES:
        raise InputError(f'"{url}": unknown scheme {match[1]}://. Give a local path or one of {_schemes()}')
    check_no_credentials(url)
    if is_http(url):
        return _http_filesystem(), url
    root, path = _split_root(_with_endpoint(url))
    if match[1].lower() == "file":
        return _local_filesystem(), path
    filesystem, prefix = _remote_filesystem(root, reading)
    return filesystem, prefix + path


def check_no_credentials(url: str) -> str:
    """`url`, once it holds no password, key or signature.

    Raises:
        InputError: naming what it holds, without its value.
    """
    match = SCHEME.match(url)
    if match is None:
        return url
    address, *queries = re.split("[?#]", url[match.end() :])
    user, at, host = address.partition("/")[0].rpartition("@")
    held = "a password" if at and ":" in user else None
    if at and is_http(url):  # elsewhere it may name a container: abfs://container@account
        held = held or "a name or token before the @"
    if not at and "@" in url and not _HOST.match(host):  # cut short by a / or ? in the password
        held, host = "a password", re.split("[/?#]", url.rpartition("@")[2])[0]
    for key, value in parse_qsl("&".join(queries).replace(";", "&"), keep_blank_values=True):
        plain = key.lower().replace("-", "").replace("_", "")
        if plain in _SECRET_NAMES or any(secret in plain for secret in _SECRETS):
            held = f"a credential ({key}=...)"
        elif key == "endpoint_override" and "@" in value:
            held = "a password (in endpoint_override)"
    if held:
        raise InputError(
            f'"{match[0]}{host}": this address holds {held}, which would be logged and saved with the run. '
            "Take it out; credentials come from the environment, such as AWS_ACCESS_KEY_ID or a profile"
        )
    return url


def is_http(url: str) -> bool:
    """Whether `url` is one of a web server, which can only be read."""
    return url.lower().startswith(("http://", "https://"))


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


def _with_endpoint(url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or not url.lower().startswith("s3://") or "endpoint_override=" in url:
        return url
    server = urlsplit(endpoint)
    host = server.netloc.rpartition("@")[2]
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}scheme={server.scheme or 'https'}&endpoint_override={quote(host, safe='')}"


def _split_root(url: str) -> tuple[str, str]:
    """scheme://host?query, which makes the file system, and the path below it."""
    address, mark, query = url.partition("?")
    scheme, rest = address.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host}{mark}{query}", slash + path


@lru_cache(maxsize=16)
def _remote_filesystem(root: str, reading: bool) -> tuple[Any, str]:
    try:
        filesystem, prefix = (_s3_reader(root) if reading else None) or fs.FileSystem.from_uri(root)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise InputError(f'"{root}": {error}') from error
    return filesystem, prefix.rstrip("/")


def _s3_reader(root: str) -> tuple[Any, str] | None:
    """As from_uri makes it, but for retries: a process that ends has to wait for all that are under way.

    None where the address has options of which nothing is known here.
    """
    scheme, _, rest = root.partition("://")
    bucket, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme != "s3" or not bucket or options.keys() - {"region", "scheme", "endpoint_override"}:
        return None
    if not options.keys() & {"region", "endpoint_override"}:
        options["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=4)), bucket


@lru_cache(maxsize=1)
def _http_filesystem() -> Any:
    from scaleaudio.data import http  # fsspec and aiohttp are an extra

    return http.filesystem()


@lru_cache(maxsize=1)
def _local_filesystem() -> Any:
    return fs.LocalFileSystem()
