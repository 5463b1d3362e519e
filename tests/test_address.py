import pytest

from tfdp import address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("a:1", "a", 1),
        ("worker-0.job_1.svc.cluster.local:2222", "worker-0.job_1.svc.cluster.local", 2222),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("node.:2222", "node.", 2222),
        ("[::1]:2222", "::1", 2222),
        ("[fe80::1%eth0]:2222", "fe80::1%eth0", 2222),
    ],
)
def test_split(text, host, port):
    assert address.split(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "without a host"),
        ("a", "without a port"),
        ("a:", "without a port"),
        (":2222", "without a host"),
        ("a:b", "whose port is not a number"),
        ("a:-1", "whose port is not a number"),
        ("a:1.0", "whose port is not a number"),
        ("a:٣", "whose port is not a number"),
        ("a:0", "whose port is out of range"),
        ("a:65536", "whose port is out of range"),
        ("a:" + "9" * 5000, "whose port is out of range"),
        ("::1:2222", "with several colons"),
        ("a:b:2222", "with several colons"),
        ("[::1]", "without a port"),
        ("[::1]:", "without a port"),
        ("[::1", "which is no IPv6 address"),
        ("[::1]2222", "which is no IPv6 address"),
        ("[a]:2222", "which is no IPv6 address"),
        ("[]:2222", "which is no IPv6 address"),
        ("grpc://a:2222", "with a scheme"),
        ("a b:2222", "with a space or control character"),
        ("a:2222\n", "with a space or control character"),
        ("a\x1b[2J:2222", "with a space or control character"),
        ("a\ud800:2222", "with a space or control character"),
        ("-oProxyCommand=x:2222", "whose host is no host name"),
        ("$(x):2222", "whose host is no host name"),
        ("a;x:2222", "whose host is no host name"),
        ("a/x:2222", "whose host is no host name"),
        ("ä:2222", "whose host is no host name"),
        ("a" * 300 + ":2222", "whose host is no host name"),
        (None, "not text"),
        (2222, "not text"),
    ],
)
def test_what_is_no_address(text, why):
    with pytest.raises(ValueError) as raised:
        address.split(text)
    assert str(raised.value).startswith(why)
    assert len(str(raised.value).splitlines()) == 1
