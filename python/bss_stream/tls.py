"""TLS: a client's context from files, and which failures of it no further attempt can mend."""

import ssl
from typing import Final

import msgspec

from bss_stream.errors import ConfigError

_OF_SERVER: Final[dict[int | None, str]] = {
    9: "the server's certificate is not valid yet: check the clocks of both machines",
    10: "the server's certificate has expired: renew it on the server",
    62: "the server's certificate is for another name: connect to a name that stands in it",
    64: "the server's certificate is for another address: connect to a name that stands in it",
}
"""By OpenSSL's code of what is wrong with a certificate."""

_UNTRUSTED: Final = (
    "the server's certificate is signed by nobody who is trusted here: name its authority in "
    "ca_file"
)

_NOT_ACCEPTED: Final = (
    "the server does not accept this client's certificate, or that it shows none: set cert_file "
    "and key_file to a valid one of an authority that the server trusts"
)
_NO_CERTIFICATE: Final = "the server wants a client's certificate: set cert_file and key_file"
_NO_TLS: Final = "the server speaks no TLS on this port: check the port, or switch TLS off"
_NO_COMMON: Final = "the server and this client have no version or cipher of TLS in common"

_BY_REASON: Final[dict[str | None, str]] = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _NO_CERTIFICATE,
    # What a server of TLS 1.2 says instead; it says so for want of a common cipher, too.
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"{_NO_COMMON}, or {_NO_CERTIFICATE}",
    "SSLV3_ALERT_BAD_CERTIFICATE": _NOT_ACCEPTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _NOT_ACCEPTED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _NOT_ACCEPTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _NOT_ACCEPTED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _NOT_ACCEPTED,
    "TLSV1_ALERT_UNKNOWN_CA": _NOT_ACCEPTED,
    "TLSV1_ALERT_ACCESS_DENIED": _NOT_ACCEPTED,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_COMMON,
    "UNSUPPORTED_PROTOCOL": _NO_COMMON,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
}
"""By OpenSSL's name of what went wrong, which alerts of the server give, too."""

_CAUSES_MAX: Final = 10


class ClientFiles(msgspec.Struct, frozen=True):
    """What a client trusts and shows of itself, as it is handed to a process of its own."""

    path: str
    """The settings' JSON path."""
    ca_file: str | None
    cert_file: str | None
    key_file: str | None

    def context(self) -> ssl.SSLContext:
        """The context of these files. Raises ConfigError."""
        return client_context(self.path, self.ca_file, self.cert_file, self.key_file)


def client_context(
    path: str, ca_file: str | None, cert_file: str | None, key_file: str | None
) -> ssl.SSLContext:
    """What a client trusts (the system's authorities without `ca_file`) and shows of itself.

    The server's name and certificate are always checked. `path` is the settings' JSON path.
    Raises ConfigError that names the setting and its file, and shows nothing of what is in it.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise _unusable(f"{path}.ca_file: {ca_file}", error, "certificates in PEM") from None
    if cert_file is not None:
        what = "a certificate in PEM, and the key of that certificate without a pass phrase"
        try:
            # Without a password of ours OpenSSL would ask for one at the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ValueError) as error:
            place = f"{path}.cert_file and key_file: {cert_file}, {key_file}"
            raise _unusable(place, error, what) from None
    return context


def _unusable(place: str, error: Exception, expected: str) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError([f"{place}: cannot be used: {reason}, expected {expected}"])


def refusal(error: BaseException | None) -> str | None:
    """What to do about a failed handshake or a lost connection; None where time may mend it.

    Looks at what an error was caused by, too.
    """
    for _ in range(_CAUSES_MAX):
        # Not every error of these types comes from OpenSSL, so not all have its attributes.
        if isinstance(error, ssl.SSLCertVerificationError):
            return _OF_SERVER.get(getattr(error, "verify_code", None), _UNTRUSTED)
        if isinstance(error, ssl.SSLError):
            advice = _BY_REASON.get(getattr(error, "reason", None))
            if advice is not None:
                return advice
        if error is None:
            break
        error = error.__cause__ or error.__context__
    return None
