"""The guard connects to nothing that the operator did not list, and to all that he did."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import ssl

import aiohttp
import pytest
import trustme
from aiohttp import web

from support import hostile, start_upstream
from support.gateway.guard import Blocked, Guard, is_internal, is_public, normal_host

SECRET = "for this network only"


@pytest.fixture(scope="module")
def upstream():
    with start_upstream(name="guarded") as server:
        yield server


async def table(answers: dict[str, list[str]], host: str, port: int) -> list[str]:
    if host not in answers:
        raise OSError(f"nobody knows {host}")
    return answers[host]


def guard_of(allowed, **answers: list[str]) -> Guard:
    names = {name.replace("_", "."): found for name, found in answers.items()}
    return Guard(allowed, resolve=lambda host, port: table(names, host, port))


def reason(guard: Guard, url: str) -> str:
    try:
        asyncio.run(guard.checked(url))
    except Blocked as error:
        assert str(error).endswith(".")
        return error.reason
    return "passes"


# --- The battery -----------------------------------------------------------------------


async def through(upstream, **defence) -> hostile.Tally:
    """Run the battery; ``defence`` as hostile.run has it, with a function that makes the guard."""

    async def internal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SECRET), SECRET.encode()))
        writer.close()

    async with await asyncio.start_server(internal, "127.0.0.1", 0) as canary:
        network = hostile.Network(canary.sockets[0].getsockname()[1], upstream.port)
        if make := defence.pop("make", None):
            defence["guard"] = make(network)
        return await hostile.run(network, SECRET, **defence)


def test_what_the_chapter_asks_of_a_gateway_beside_the_battery() -> None:
    assert hostile.nested("http://g", 0) == "http://g/seen"
    assert hostile.nested("http://g", 2).count("aggregate%3Fservices%3D") == 2
    assert hostile.told({"secret": 1}) == "{'secret': 1}" and hostile.told({"error": "boom"}) == "another error"
    assert hostile.told({"error": "... Connect call failed (...)"}) == "Connect call failed"

    async def heard() -> bytes:
        async with await asyncio.start_server(hostile.hangs_up, "127.0.0.1", 0) as listening:
            host, _, port = hostile.address(listening).removeprefix("http://").partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\n")
            try:
                return await reader.read()
            finally:
                writer.close()

    assert asyncio.run(heard()) == b""


def listed(network: hostile.Network) -> Guard:
    ports = dict.fromkeys(hostile.LISTED, {network.upstream}) | dict.fromkeys(hostile.PARTNERS, {80, network.canary})
    return Guard(ports, resolve=network.resolve, allow_loopback_for_practice=hostile.LISTED)


def any_public(network: hostile.Network) -> Guard:
    ports = dict.fromkeys(hostile.LISTED, {network.upstream}) | {"*": {22, 80, 443, network.canary}}
    return Guard(ports, resolve=network.resolve, allow_loopback_for_practice=hostile.LISTED)


@pytest.mark.parametrize("make", [listed, any_public])
def test_no_hostile_url_connects_and_every_good_one_works(upstream, make) -> None:
    tally = asyncio.run(through(upstream, make=make))
    assert len(tally.tried) >= 40 and tally.connected == tally.leaked == []
    assert tally.good == tally.welcome >= 6


def test_the_same_battery_goes_through_without_a_guard(upstream) -> None:
    tally = asyncio.run(through(upstream))
    assert len(tally.connected) > 40 and len(tally.leaked) > 20  # else the test above would prove nothing
    assert {one.trick for one in tally.connected} == {one.trick for one in tally.tried}
    assert tally.good == tally.welcome


def test_a_url_that_is_read_strictly_is_refused_before_any_name_is_asked(upstream) -> None:
    async def ask() -> None:
        network = hostile.Network(1, upstream.port)
        guard = listed(network)
        for trick, url in hostile.battery(1, upstream.port):
            if trick in ("redirect", "name"):
                continue
            with pytest.raises(Blocked):
                await guard.checked(url)
        assert not network.asked
        assert (await guard.checked(hostile.welcome(upstream.port)[0])).addresses == ("127.0.0.1",)

    asyncio.run(ask())


# --- The connector -----------------------------------------------------------------------


async def through_guard(network: hostile.Network, url: str, **options) -> tuple[int, str]:
    async with aiohttp.ClientSession(connector=listed(network).connector(**network.counting)) as session:
        async with session.get(url, **options) as answer:
            return answer.status, await answer.text()


def test_a_name_is_resolved_once_and_its_second_answer_is_never_used(upstream) -> None:
    async def ask() -> None:
        network = hostile.Network(9, upstream.port)
        with pytest.raises(aiohttp.ClientConnectorError):
            await through_guard(network, "http://partner.test/")
        assert network.dialled == [(hostile.PUBLIC, 80)] and network.asked["partner.test"] == 1

    asyncio.run(ask())


def test_every_redirect_is_checked_anew_and_one_inside_the_list_is_followed(upstream) -> None:
    async def ask() -> None:
        network, good = hostile.Network(9, upstream.port), f"http://users.practice:{upstream.port}"
        assert await through_guard(network, f"{good}/redirect/3") == (200, '{"redirects": "done"}')
        with pytest.raises(Blocked, match="not a host") as refused:
            await through_guard(network, f"{good}/redirect?to=http://{hostile.METADATA}/")
        assert refused.value.reason == "unlisted"
        status, _ = await through_guard(
            network, f"{good}/redirect?to=http://{hostile.METADATA}/", allow_redirects=False
        )
        assert status == 302 and network.forbidden == []

    asyncio.run(ask())


def test_a_websocket_is_not_one_of_the_schemes(upstream) -> None:
    async def ask() -> None:
        network = hostile.Network(9, upstream.port)
        async with aiohttp.ClientSession(connector=listed(network).connector(**network.counting)) as session:
            with pytest.raises(Blocked, match="'ws'"):
                await session.ws_connect(f"ws://users.practice:{upstream.port}/")
        assert network.dialled == []

    asyncio.run(ask())


def test_a_user_in_a_redirect_changes_nothing_about_where_it_leads(upstream) -> None:
    async def ask() -> None:
        network, good = hostile.Network(9, upstream.port), f"users.practice:{upstream.port}"
        with pytest.raises(Blocked):
            await through_guard(network, f"http://{good}/redirect?to=http://{good}@127.0.0.1:9/")
        assert network.forbidden == []

    asyncio.run(ask())


def test_a_proxy_is_refused_because_it_would_resolve_the_name_itself(upstream) -> None:
    network = hostile.Network(9, upstream.port)
    with pytest.raises(Blocked, match="proxy"):
        asyncio.run(through_guard(network, f"http://users.practice:{upstream.port}/item/1", proxy="http://127.0.0.1:9"))
    assert network.dialled == []


def test_host_header_and_tls_name_stay_those_of_the_url() -> None:
    """The address is pinned below HTTP and TLS: a certificate for the name holds, and one for another does not."""
    authority, here = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("users.practice").configure_cert(here)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def host(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Host"])

    async def ask() -> None:
        server = web.Server(host)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=here)
        port = listener.sockets[0].getsockname()[1]
        try:
            network = hostile.Network(port, port)
            assert await through_guard(network, f"https://users.practice:{port}/", ssl=trusting) == (
                200,
                f"users.practice:{port}",
            )
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await through_guard(network, f"https://orders.practice:{port}/", ssl=trusting)
        finally:
            listener.close()
            await server.shutdown()

    asyncio.run(ask())


def test_the_connector_keeps_its_connections(upstream) -> None:
    async def ask() -> None:
        upstream.reset()
        network = hostile.Network(9, upstream.port)
        options = network.counting | {"force_close": False}
        async with aiohttp.ClientSession(connector=listed(network).connector(**options)) as session:
            for _ in range(5):
                async with session.get(f"http://users.practice:{upstream.port}/item/1") as answer:
                    await answer.read()
        assert len(network.dialled) == 1 and upstream.stats()["requests"] == 5

    asyncio.run(ask())


# --- Addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.7", "198.18.0.1", "198.51.100.9", "203.0.113.5", "224.0.0.1",
    "239.1.1.1", "240.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
    "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::",
    "2001::80ff:fffe", "2001:db8::1", "3fff::1", "fd00:ec2::254", "fc00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
    "100::1", "5f00::1", "4000::1", "localhost", "", "127.1", "0x7f000001", "1.2.3.4.5",
])  # fmt: skip
def test_what_is_no_public_address_is_closed(address: str) -> None:
    assert not is_public(address)
    assert (
        reason(guard_of({"a.test"}, a_test=["8.8.8.8", address]), "http://a.test/") == "address"
    )  # not only the first


@pytest.mark.parametrize("address", [
    "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.167.255.255", "223.255.255.255",
    "2606:4700::1111", "2a00:1450:4001::8", "::ffff:8.8.8.8", "64:ff9b::808:808",
])  # fmt: skip
def test_what_is_a_public_address_is_open(address: str) -> None:
    assert is_public(address)
    found = asyncio.run(guard_of({"a.test"}, a_test=[address, "1.1.1.1"]).checked("https://A.test./x?y=1#z"))
    assert (found.scheme, found.host, found.port, found.path) == ("https", "a.test", 443, "/x?y=1")
    assert found.addresses == (address, "1.1.1.1")


def test_a_host_is_internal_by_its_spelling() -> None:
    for host in ("10.0.0.1", "[::1]", "::1", "127.1", "0x7f000001", "localhost", "LOCALHOST.", "admin", "db.internal",
                 "a.svc.cluster.local", "x.lan", "a..b", "-a.de", ""):  # fmt: skip
        assert is_internal(host), host
    for host in (
        "example.com",
        "EXAMPLE.com.",
        "bücher.example.com",
        "8.8.8.8",
        "2606:4700::1111",
        "local.example.com",
    ):
        assert not is_internal(host), host


def test_it_opens_nothing_that_the_standard_library_calls_private() -> None:
    dice = random.Random(9)
    for _ in range(4000):
        for address in (ipaddress.IPv4Address(dice.getrandbits(32)), ipaddress.IPv6Address(dice.getrandbits(128))):
            if is_public(str(address)):
                assert address.is_global and not (address.is_multicast or address.is_reserved), address
    closed = sum(not is_public(str(ipaddress.IPv4Address(dice.getrandbits(32)))) for _ in range(20_000)) / 20_000
    assert abs(closed - 0.138) < 0.02  # 592.7 million of 2**32: it closes no more than the registries do


# --- Reading a URL -----------------------------------------------------------------------


@pytest.mark.parametrize(("url", "why"), [
    ("ftp://a.test/", "scheme"), ("a.test/", "scheme"), ("//a.test/", "scheme"), ("http:a.test", "scheme"), ("", "scheme"),
    ("http:/a.test/", "scheme"), ("javascript:alert(1)", "scheme"), ("http://", "host"), ("http:///x", "host"),
    ("http://a.test@b.test/", "userinfo"), ("http://@a.test/", "userinfo"), ("http://u:p@a.test/", "userinfo"),
    ("http://a.test\\@b.test/", "characters"), ("http://a.test/\r\nHost: b", "characters"), (" http://a.test/", "characters"),
    ("http://a.te\tst/", "characters"), ("http://a.test/\x00", "characters"), ("http://a.test/\u2028", "characters"),
    ("http://a.test/" + 3000 * "x", "characters"), (b"http://a.test/", "characters"), (None, "characters"),
    ("http://a.test:81/", "port"), ("http://a.test:99999/", "host"), ("http://a.test:0/", "port"), ("http://a.test:-80/", "host"),
    ("http://a.test:8o/", "host"), ("http://[a.test]/", "host"), ("http://[::1/", "host"), ("http://a..test/", "host"),
    ("http://-a.test/", "host"), ("http://a%2etest/", "host"), ("http://a.test%00.b.test/", "host"), ("http://a.test,b/", "host"),
    ("http://b.a.test/", "unlisted"), ("http://a.test.b.test/", "unlisted"), ("http://xa.test/", "unlisted"),
    ("http://127.0.0.1/", "unlisted"), ("http://2130706433/", "host"), ("http://127.1/", "host"), ("http://0x7f.1/", "host"),
    ("http://0177.0.0.1/", "host"), ("http://1.2.3.4.5/", "host"), ("http://[::1]/", "unlisted"),
])  # fmt: skip
def test_what_is_refused_and_why(url: str, why: str) -> None:
    assert reason(guard_of({"a.test"}, a_test=["8.8.8.8"]), url) == why


@pytest.mark.parametrize(("spelling", "plain"), [
    ("A.Test.", "a.test"), ("bücher.test", "xn--bcher-kva.test"), ("127。0。0。1", "127.0.0.1"), ("①②⑦.⓪.⓪.①", "127.0.0.1"),
    ("localhoſt", "localhost"), ("[::1]", "::1"), ("[0:0:0:0:0:FFFF:127.0.0.1]", str(ipaddress.ip_address("::ffff:7f00:1"))), ("my_db", "my_db"),
])  # fmt: skip
def test_one_spelling_of_a_host(spelling: str, plain: str) -> None:
    assert normal_host(spelling) == plain


def test_a_name_without_an_address_is_an_error_of_the_network() -> None:
    with pytest.raises(OSError, match="nobody knows"):
        asyncio.run(guard_of({"a.test"}).checked("http://a.test/"))
    with pytest.raises(OSError, match="no address"):
        asyncio.run(guard_of({"a.test"}, a_test=[]).checked("http://a.test/"))


# --- The operator's list -----------------------------------------------------------------


def test_practice_opens_loopback_for_the_named_hosts_and_ports_only() -> None:
    lists = {"127.0.0.1": {8001}, "mine.test": {8002}, "partner.test": {80}, "*": {80, 443}}
    answers = {name: ["127.0.0.1"] for name in ("mine.test", "partner.test", "other.test")}
    answers |= {"lan.test": ["10.0.0.1"]}

    def practice(allow) -> Guard:
        return Guard(lists, resolve=lambda host, port: table(answers, host, port), allow_loopback_for_practice=allow)

    named, every, none = practice({"127.0.0.1", "mine.test"}), practice(True), practice(False)
    urls = (
        "http://127.0.0.1:8001/",
        "http://mine.test:8002/",
        "http://partner.test/",
        "http://other.test/",
        "http://127.0.0.1/",
    )
    assert [reason(named, url) for url in urls] == ["passes", "passes", "address", "address", "port"]
    assert [reason(every, url) for url in urls] == ["passes", "passes", "passes", "address", "port"]
    star = Guard({"*": {80}}, resolve=every._resolve, allow_loopback_for_practice={"mine.test"})
    assert reason(star, "http://mine.test/") == "address"  # not on the list
    assert [reason(none, url) for url in urls] == ["address", "address", "address", "address", "port"]
    assert (
        reason(Guard({"lan.test"}, resolve=every._resolve, allow_loopback_for_practice=True), "http://lan.test/")
        == "address"
    )


@pytest.mark.parametrize(("allowed", "told"), [
    ("a.test", "is one text"), ({"a.test": {0}}, "port 0"), ({"a.test": {"80"}}, "port '80'"), ({"a.test": {70000}}, "70000"),
    ({"http://a.test"}, "no host name"), ({"127.1"}, "a number"),
])  # fmt: skip
def test_a_list_that_makes_no_sense_is_refused_in_a_sentence(allowed, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Guard(allowed)


def test_the_system_is_asked_without_a_resolver_of_ones_own() -> None:
    assert reason(Guard({"localhost"}), "http://localhost/") == "address"
    guard = Guard({"localhost"}, allow_loopback_for_practice=True)
    assert asyncio.run(guard.checked("http://localhost/")).addresses[0] in ("127.0.0.1", "::1")
