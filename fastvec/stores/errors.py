"""Turns what a store's library raises into one line. It quotes only codes, because messages may have secrets."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastvec.errors import FastvecError, InputError, OutputError, one_line
from fastvec.stores.address import Address

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
_BAD_CREDENTIALS = {
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}
_UNREACHABLE = (
    "Timeout",
    "Connection",
    "Connect",
    "EndpointConnectionError",
    "Payload",
    "IncompleteRead",
    "HTTPClient",
)
_CHAIN = 8  # causes looked at


@contextmanager
def translated_store_errors(address: Address, kind: type[InputError] | type[OutputError]) -> Iterator[None]:
    """Raise what a store's library raises in this block as a `kind` of one line, without the library's own message.

    FileNotFoundError and FileExistsError pass: their meaning is the caller's.
    """
    try:
        yield
    except (FastvecError, FileNotFoundError, FileExistsError):
        raise
    except ImportError as error:
        raise kind(f"{address}: {_missing_package(address.scheme, error)}") from error
    except Exception as error:  # each library has errors of its own
        raise kind(f"{address}: {_reason(address, error)}") from error


def _missing_package(scheme: str, error: ImportError) -> str:
    if scheme in EXTRAS:
        return f"{scheme}:// needs a package that is not installed: pip install 'fastvec[{EXTRAS[scheme]}]'"
    return f"{scheme}:// needs a package that is not installed: {one_line(error)}"


def _reason(address: Address, error: Exception) -> str:
    chain = list(_chain(error))
    names = [type(one).__name__ for one in chain]
    code = next(filter(None, map(_code, chain)), "")
    if "FileExpired" in names:
        return "changed while it was being read; run the command again"
    if isinstance(error, ValueError) and not code and "rotocol not known" in str(error):
        return f"{address.scheme}:// is not an address that fsspec knows: expected s3://, gs://, abfs:// or hf://"
    if code in _BAD_CREDENTIALS:
        return f"the store does not accept the credentials ({code}): check them in the environment"
    if not _NO_CREDENTIALS.isdisjoint(names):
        return "no credentials were found: set the store's environment variables, or its configuration"
    if isinstance(error, PermissionError) or code in ("403", "401", "AccessDenied"):
        return "the store denies access: the credentials are wrong, or do not permit this"
    if code in ("ContainerNotFound", "NoSuchBucket"):
        return "there is no such bucket: make it first, or give another address"
    if code in ("SlowDown", "503", "500", "InternalError", "ServiceUnavailable", "RequestTimeout"):
        return f"the store failed ({code}), also when tried again: run the same command later, it resumes"
    if any(part in name for name in names for part in _UNREACHABLE):
        return f"the store does not answer ({names[-1]}), also when tried again: run the same command later, it resumes"
    return f"the store's answer was an error ({code or names[0]}): run the same command again, it resumes"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    """Return the error code of botocore, or the HTTP status of gcsfs, adlfs or the hub's client; empty if none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    found = getattr(error, "error_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
    found = found or getattr(response, "status_code", None)
    return str(found) if isinstance(found, int | str) and len(str(found)) < 60 else ""
