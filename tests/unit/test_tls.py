"""TLS contexts: what they check, and which files cannot make one."""

import ssl
import subprocess
from pathlib import Path

import pytest

from bss_stream.errors import ConfigError
from bss_stream.tls import client_context, refusal
from tests.servers.certificates import Certificates


def fault(ca: Path | None, cert: Path | None = None, key: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        client_context("$.x", *(None if file is None else str(file) for file in (ca, cert, key)))
    [line] = caught.value.faults
    return line


def test_the_server_is_always_checked(certificates: Certificates) -> None:
    shown = certificates.server
    context = client_context("$.x", str(certificates.ca), str(shown.cert), str(shown.key))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1, "with an authority of its own it trusts no other"


def test_a_file_that_cannot_be_used_is_named(certificates: Certificates, tmp_path: Path) -> None:
    absent, no_pem = tmp_path / "absent.pem", tmp_path / "no.pem"
    no_pem.write_text("hello")
    reason = "cannot be used: No such file or directory, expected certificates in PEM"
    assert fault(absent) == f"$.x.ca_file: {absent}: {reason}"
    assert f"$.x.ca_file: {no_pem}: cannot be used: " in fault(no_pem)
    shown = certificates.server
    assert f"$.x.cert_file and key_file: {absent}, {shown.key}" in fault(None, absent, shown.key)
    other = certificates.expired
    assert "the key of that certificate" in fault(None, shown.cert, other.key)


def test_a_key_with_a_pass_phrase_is_a_fault_and_no_question(
    certificates: Certificates, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    files = ["-in", str(certificates.server.key), "-out", str(locked)]
    change = ["openssl", "pkcs8", "-topk8", *files, "-passout", "pass:secret"]
    subprocess.run(change, check=True, capture_output=True)
    line = fault(None, certificates.server.cert, locked)
    assert "without a pass phrase" in line
    assert "secret" not in line


def test_only_what_time_does_not_mend_is_final() -> None:
    assert refusal(None) is None
    assert refusal(ConnectionResetError()) is None
    assert refusal(ssl.SSLEOFError()) is None
    assert refusal(TimeoutError()) is None
    wrapped = OSError()
    wrapped.__cause__ = ssl.SSLCertVerificationError(1, "x")
    assert "signed by nobody who is trusted here" in (refusal(wrapped) or "")
