"""Certificates and keys of a test's Kubernetes: an authority, the API server's, the key that signs accounts' tokens."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

LIFETIME = datetime.timedelta(days=2)
AUTHORITY = "launch-test-ca"
NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


def write_keys(folder: Path, address: str) -> None:
    """Write `ca.crt`, `apiserver.crt`, `apiserver.key` and `accounts.key` (it signs the tokens of ServiceAccounts).

    Args:
        folder: Where to.
        address: IP address of the API server.
    """
    authority_key, server_key = _new_key(), _new_key()
    authority = _certificate(AUTHORITY, authority_key).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    authority = authority.add_extension(_usage(signs_certificates=True), critical=True)
    (folder / "ca.crt").write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in (address, "127.0.0.1")]
    server = _certificate(
        "kube-apiserver", server_key, issuer_key=authority_key, issuer="launch-test-ca"
    ).add_extension(x509.SubjectAlternativeName([*(x509.DNSName(name) for name in NAMES), *addresses]), critical=False)
    server = server.add_extension(_usage(signs_certificates=False), critical=True)
    (folder / "apiserver.crt").write_bytes(server.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    _write_key(folder / "apiserver.key", server_key)
    _write_key(folder / "accounts.key", _new_key())


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _certificate(
    name: str, key: rsa.RSAPrivateKey, *, issuer_key: rsa.RSAPrivateKey | None = None, issuer: str | None = None
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    issuer_public = (issuer_key or key).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer or name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFETIME)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(file: Path, key: rsa.RSAPrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
