"""A client of ferriod in Python, written from ABI.md and the proto files alone: it proves that they are enough.

client.py SCENARIO --socket CONTROL_SOCKET [--sleep] ...; tests/tests/second_client.rs runs it. The generated gRPC modules
must be on PYTHONPATH. Needs volumes `data` and, for `checks`, `far`, which lives on another engine.
"""

import argparse
import errno
import random
import re
import sys

import abi
from abi import OP, Region, Session, sqe

BLOCK = 4096
# Stated in Sessions.Open: everything this client knows.
FEATURES = abi.VECTORED | abi.DISCARD | abi.COMPARE_AND_WRITE | abi.CANCEL | abi.ORDER | abi.CLIENT_REGIONS


def channel(arguments):
    import grpc
    # grpcio would send the socket's path as the authority, which is none (ABI.md, section 3).
    return grpc.insecure_channel(f"unix:{arguments.socket}", [("grpc.default_authority", "localhost")])


def open_session(arguments, volumes=(("data", "READ_WRITE"),), features=FEATURES, cq_entries=0, arena=1 << 20, queues=1):
    from ferrio.v1 import common_pb2, sessions_pb2, sessions_pb2_grpc
    request = sessions_pb2.OpenSessionRequest(
        client_name="python", arena_bytes=arena, abi_min=1, abi_max=1, features=features,
        queues=[sessions_pb2.QueueRequest(sq_entries=arguments.entries, cq_entries=cq_entries)] * queues,
        volumes=[sessions_pb2.VolumeRequest(name=name, access=getattr(common_pb2, f"ACCESS_{access}"))
                 for name, access in volumes])
    with channel(arguments) as control:
        return Session(sessions_pb2_grpc.SessionsStub(control).Open(request, timeout=20))


class Caller:
    """Requests one after the other, or many at once, on one queue; results by user_data."""

    def __init__(self, session, sleep, index=0):
        self.session, self.queue, self.sleep = session, session.queues[index], sleep
        self.next_user_data = 1
        self.results = {}
        self.resumed = 0

    def submit(self, op, **fields):
        """Pushes without publishing. Returns the user_data."""
        user_data, self.next_user_data = self.next_user_data, self.next_user_data + 1
        while not self.queue.push(sqe(op, user_data=user_data, **fields)):
            self.queue.publish()
            self.collect(self.queue.reap() or self.wait())
        return user_data

    def collect(self, completions):
        for completion in completions:
            assert completion.user_data not in self.results, f"{completion.user_data} answered twice"
            assert 0 < completion.user_data < self.next_user_data, f"{completion.user_data} was never submitted"
            self.results[completion.user_data] = completion

    def result(self, user_data):
        self.queue.publish()
        while user_data not in self.results:
            self.collect(self.wait())
        return self.results.pop(user_data).result

    def wait(self):
        """At least one completion; a session that may goes on at the next daemon."""
        while True:
            try:
                return self.queue.wait(self.sleep)
            except abi.SessionOver:
                if not self.session.answer.features & abi.RESUME:
                    raise
            self.session.resume()
            self.resumed += 1

    def call(self, op, **fields):
        return self.result(self.submit(op, **fields))

    def write(self, block, data, **fields):
        self.session.arena[:len(data)] = data
        return self.call("write", offset=block * BLOCK, length=len(data), **fields)

    def read(self, block, length=BLOCK):
        self.session.arena[:length] = b"\xa5" * length
        expect(self.call("read", offset=block * BLOCK, length=length), length)
        return bytes(self.session.arena[:length])


def expect(found, expected, what=""):
    if found != expected:
        name = f" ({errno.errorcode.get(-found, '?')})" if isinstance(found, int) and found < 0 else ""
        raise AssertionError(f"{what}: {found!r}{name} instead of {expected!r}")


def pattern(seed, block):
    return random.Random(seed << 32 | block).randbytes(BLOCK)


def verify(arguments):
    """Many writes in flight, then a flush, then many reads, each block compared; the rings wrap around many times."""
    session = open_session(arguments)
    queue = session.queues[0]
    places = list(range(session.answer.arena_bytes // BLOCK))
    order = random.Random(arguments.seed)
    blocks = min(session.volume(0).size_bytes // BLOCK, 512)
    user_data = 0
    for number in range(arguments.rounds):
        for op in ("write", "read"):
            waiting, flying = list(range(blocks)), {}
            order.shuffle(waiting)
            while waiting or flying:
                while waiting and places and queue.room() > 0:
                    block, place = waiting.pop(), places.pop()
                    at = place * BLOCK
                    session.arena[at:at + BLOCK] = pattern(number, block) if op == "write" else bytes(BLOCK)
                    user_data += 1
                    flying[user_data] = block, place
                    fua = abi.FUA if op == "write" and block % 7 == 0 else 0
                    assert queue.push(sqe(op, klass=block % 2, flags=fua, user_data=user_data, offset=block * BLOCK,
                                          length=BLOCK, region_offset=at))
                queue.publish()
                for completion in queue.wait(arguments.sleep):
                    expect(completion.result, BLOCK, f"{op} {completion.user_data}")
                    block, place = flying.pop(completion.user_data)
                    at = place * BLOCK
                    if op == "read" and session.arena[at:at + BLOCK] != pattern(number, block):
                        raise AssertionError(f"block {block} has not what was written in round {number}")
                    places.append(place)
            expect(Caller(session, arguments.sleep).call("flush"), 0, "flush")
    assert not arguments.sleep or queue.sleeps > 0, "it never slept"
    assert user_data > 4 * arguments.entries, "the rings did not wrap around"
    session.close()
    print(f"verified {user_data} requests, slept {queue.sleeps} times, rang {queue.rings} times")


def checks(arguments):
    """Section 9, Checks: each row that a client can provoke on purpose."""
    session = open_session(arguments, volumes=(("data", "READ_WRITE"), ("data", "READ_ONLY"), ("far", "READ_WRITE")))
    caller = Caller(session, arguments.sleep)
    volume = session.volume(0)
    size, length = volume.size_bytes, BLOCK
    cases = [
        ("op not in the table", errno.EINVAL, dict(op=10)),
        ("op not in the table, highest", errno.EINVAL, dict(op=255)),
        ("reserved", errno.EINVAL, dict(op="nop", reserved=1)),
        ("unknown flag", errno.EINVAL, dict(op="read", length=length, flags=8)),
        ("unknown class", errno.EINVAL, dict(op="read", length=length, klass=2)),
        ("fua with read", errno.EINVAL, dict(op="read", length=length, flags=abi.FUA)),
        ("fua with flush", errno.EINVAL, dict(op="flush", flags=abi.FUA)),
        ("length with flush", errno.EINVAL, dict(op="flush", length=1)),
        ("volume with nop", errno.EINVAL, dict(op="nop", volume=1)),
        ("iov_count with read", errno.EINVAL, dict(op="read", length=length, iov_count=1)),
        ("arg with write", errno.EINVAL, dict(op="write", length=length, arg=1)),
        ("volume not granted", errno.EBADF, dict(op="read", volume=3, length=length)),
        ("volume of another engine", errno.EXDEV, dict(op="read", volume=2, length=length)),
        ("write to a volume granted ro", errno.EROFS, dict(op="write", volume=1, length=length)),
        ("length 0", errno.EINVAL, dict(op="read")),
        ("offset not a multiple", errno.EINVAL, dict(op="read", offset=1, length=length)),
        ("length not a multiple", errno.EINVAL, dict(op="read", length=length + 1)),
        ("length beyond the limit", errno.EMSGSIZE, dict(op="read", length=volume.request_bytes_max + length)),
        ("beyond the end", errno.ERANGE, dict(op="read", offset=size, length=length)),
        ("beyond 2^64", errno.ERANGE, dict(op="read", offset=(1 << 64) - BLOCK, length=length)),
        ("region not known", errno.ENXIO, dict(op="read", length=length, region=9)),
        ("memory beyond its region", errno.EFAULT,
         dict(op="read", length=length, region_offset=session.answer.arena_bytes)),
        ("memory misaligned", errno.EFAULT, dict(op="read", length=length, region_offset=1)),
    ]
    for what, number, fields in cases:
        expect(caller.call(**fields), -number, what)
        expect(caller.call("nop"), 0, f"a nop after {what}")
    expect(caller.call("flush", volume=1), 0, "flush on a volume granted ro")
    unserved = [name for bit, names in [(abi.VECTORED, ("readv", "writev")), (abi.DISCARD, ("discard", "write-zeroes")),
                                        (abi.COMPARE_AND_WRITE, ("compare-and-write",)), (abi.CANCEL, ("cancel",))]
                for name in names if not session.answer.features & bit]
    for name in unserved:
        expect(caller.call(name, length=length), -errno.EOPNOTSUPP, name)
    session.close()
    print(f"checked {len(cases)} refusals, {len(unserved)} opcodes not served")


def not_granted(arguments):
    """A client that asks for no feature gets none, and EOPNOTSUPP for what they bring (section 9, checks 2 and 4)."""
    session = open_session(arguments, features=0)
    expect(session.answer.features, 0, "features")
    caller = Caller(session, arguments.sleep)
    for name in abi.OPS:
        if name not in ("nop", "read", "write", "flush"):
            expect(caller.call(name, length=BLOCK), -errno.EOPNOTSUPP, name)
    for what, fields in [("link", dict(flags=abi.LINK)), ("barrier", dict(flags=abi.BARRIER)),
                         ("timeout", dict(timeout_us=1))]:
        expect(caller.call("nop", **fields), -errno.EOPNOTSUPP, what)
    session.close()
    print("nothing granted, nothing served")


def fault(arguments):
    """Section 8: an sq_tail too far ahead ends the session's service, and the client is told why."""
    session = open_session(arguments)
    queue = session.queues[0]
    expect(Caller(session, arguments.sleep).call("nop"), 0)
    queue.tail = (queue.tail + arguments.entries + 1) & abi.U32
    queue.publish()
    try:
        queue.wait(arguments.sleep)
        raise AssertionError("a completion came")
    except abi.SessionOver as over:
        assert "fault" in str(over), over
    expect(session.state(), abi.FAULTED, "state")
    print(f"told: {session.lease.over}")


def events(arguments):
    """Resize and Evict, which an operator causes; here the same process."""
    from ferrio.v1 import sessions_pb2, sessions_pb2_grpc, volumes_pb2, volumes_pb2_grpc
    session = open_session(arguments, volumes=(("data", "READ_WRITE"), ("data", "READ_ONLY")))
    caller = Caller(session, arguments.sleep)
    old = session.volume(0).size_bytes
    with channel(arguments) as control:
        for size in (2 * old, old):
            volumes_pb2_grpc.VolumesStub(control).Resize(
                volumes_pb2.ResizeVolumeRequest(name="data", size_bytes=size), timeout=20)
            result = caller.call("read", offset=old, length=BLOCK)
            expect(result, BLOCK if size > old else -errno.ERANGE, f"a read beyond {old} of {size} bytes")
        session.lease.listen()
        told = [(abi.RESIZE, index, size) for size in (2 * old, old) for index in (0, 1)]
        expect(sorted(session.lease.events), sorted(told), "events")
        sessions_pb2_grpc.SessionsStub(control).Evict(
            sessions_pb2.EvictSessionRequest(session_id=session.answer.session_id, reason="no room"), timeout=20)
    try:
        session.queues[0].wait(arguments.sleep)
        raise AssertionError("a completion came")
    except abi.SessionOver:
        session.lease.listen()
    expect([payload for kind, payload, *_ in session.lease.events if kind == abi.EVICT], [b"no room"], "Evict")
    print("told of two sizes and the end")


class Operations:
    """What the feature bits bring, each as far as it was granted."""

    def __init__(self, arguments):
        self.session = open_session(arguments, queues=2, cq_entries=2 * arguments.entries)
        self.caller = Caller(self.session, arguments.sleep)
        self.arena, self.call = self.session.arena, self.caller.call

    def fill(self, at, data):
        self.arena[at:at + len(data)] = data

    def iovec(self, at, *pieces):
        """Writes an iovec of (region, offset, length) and returns the fields of its readv or writev."""
        self.fill(at, b"".join(abi.IOV.pack(region, 0, length, offset) for region, offset, length in pieces))
        return dict(region_offset=at, iov_count=len(pieces), length=sum(length for _, _, length in pieces))

    def vectored(self):
        parts = [pattern(1, number) for number in range(5)]
        table = 16 * BLOCK
        for place, part in zip((7, 2, 9, 4, 11), parts, strict=True):
            self.fill(place * BLOCK, part)
        pieces = [(0, place * BLOCK, BLOCK) for place in (7, 2, 9, 4, 11)]
        expect(self.call("writev", offset=8 * BLOCK, **self.iovec(table, *pieces)), 5 * BLOCK, "writev")
        expect(self.caller.read(8, 5 * BLOCK), b"".join(parts), "what writev wrote")
        self.fill(0, bytes(16 * BLOCK))
        pieces.reverse()
        expect(self.call("readv", offset=8 * BLOCK, **self.iovec(table, *pieces)), 5 * BLOCK, "readv")
        for place, part in zip((11, 4, 9, 2, 7), parts, strict=True):
            expect(bytes(self.arena[place * BLOCK:(place + 1) * BLOCK]), part, f"piece at {place}")
        good = self.iovec(table, *pieces)
        for what, number, change in [("no entry", errno.EINVAL, dict(iov_count=0)),
                                     ("257 entries", errno.EINVAL, dict(iov_count=257)),
                                     ("sum", errno.EINVAL, dict(length=4 * BLOCK)),
                                     ("iovec misaligned", errno.EINVAL, dict(region_offset=table + 8)),
                                     ("iovec's region", errno.ENXIO, dict(region=9))]:
            expect(self.call("readv", offset=0, **{**good, **change}), -number, what)
        outside = self.iovec(table, (0, len(self.arena), BLOCK))
        expect(self.call("readv", offset=0, **outside), -errno.EFAULT, "piece outside of its region")
        many = [(0, number * BLOCK, BLOCK) for number in range(64)] * 4
        expect(self.call("writev", offset=0, **self.iovec(100 * BLOCK, *many)), 256 * BLOCK, "256 entries")

    def discard(self):
        self.caller.write(20, pattern(2, 0) + pattern(2, 1) + pattern(2, 2))
        zeroed = self.call("write-zeroes", offset=21 * BLOCK, length=BLOCK, flags=abi.FUA)
        discarded = self.call("discard", offset=22 * BLOCK, length=BLOCK)
        # What the volume cannot do is refused; Volumes.List says which.
        assert zeroed in (0, -errno.EOPNOTSUPP) and discarded in (0, -errno.EOPNOTSUPP), (zeroed, discarded)
        if zeroed == 0:
            expect(self.caller.read(21), bytes(BLOCK), "what write-zeroes left")
            whole = self.session.volume(0).size_bytes
            expect(self.call("write-zeroes", length=whole), 0, "the whole volume")
            expect(self.caller.read(20), bytes(BLOCK), "its block 20")
        else:
            expect(self.caller.read(20), pattern(2, 0), "the block before")

    def compare_and_write(self):
        old, new = pattern(3, 0), pattern(3, 1)
        self.caller.write(30, old)
        self.fill(0, old + new)
        swap = dict(offset=30 * BLOCK, length=BLOCK)
        expect(self.call("compare-and-write", flags=abi.FUA, **swap), BLOCK, "equal")
        expect(self.caller.read(30), new, "after it")
        self.fill(0, old + old)
        expect(self.call("compare-and-write", **swap), -errno.EILSEQ, "different")
        expect(self.caller.read(30), new, "after that")

    def cancel(self):
        expect(self.call("cancel", arg=1 << 60), -errno.ENOENT, "cancel of nothing")
        for number in range(50):
            target = self.caller.submit("write", offset=(number % 8) * BLOCK, length=BLOCK, region_offset=BLOCK)
            answer = self.call("cancel", arg=target)
            result = self.caller.result(target)
            if answer == 0:
                expect(result, -errno.ECANCELED, "the request that was cancelled")
            else:
                assert answer in (-errno.ENOENT, -errno.EALREADY), answer
                expect(result, BLOCK, "the request that was not")
        for number in range(50):
            result = self.call("read", offset=0, length=BLOCK, timeout_us=1 + number)
            assert result in (BLOCK, -errno.ETIMEDOUT), result

    def order(self):
        caller = self.caller
        for number in range(50):
            # Each link depends on the one before: the read at the end sees the last write.
            for place in range(3):
                self.fill(place * BLOCK, pattern(4, number * 3 + place))
            chain = [caller.submit("write", offset=40 * BLOCK, length=BLOCK, region_offset=place * BLOCK, flags=abi.LINK)
                     for place in range(3)]
            chain.append(caller.submit("read", offset=40 * BLOCK, length=BLOCK, region_offset=8 * BLOCK))
            for member in chain:
                expect(caller.result(member), BLOCK, "a member of a chain")
            expect(bytes(self.arena[8 * BLOCK:9 * BLOCK]), pattern(4, number * 3 + 2), "what the chain's end reads")
            # A barrier does the same without links.
            writes = [caller.submit("write", offset=41 * BLOCK, length=BLOCK, region_offset=place * BLOCK,
                                    flags=abi.BARRIER) for place in range(3)]
            read = caller.submit("read", offset=41 * BLOCK, length=BLOCK, region_offset=8 * BLOCK)
            for member in writes + [read]:
                expect(caller.result(member), BLOCK, "a request at a barrier")
            expect(bytes(self.arena[8 * BLOCK:9 * BLOCK]), pattern(4, number * 3 + 2), "what is read after barriers")
        broken = [caller.submit("nop", flags=abi.LINK), caller.submit("read", length=1, flags=abi.LINK),
                  caller.submit("nop", flags=abi.LINK), caller.submit("nop")]
        expect([caller.result(member) for member in broken],
               [0, -errno.EINVAL, -errno.ECANCELED, -errno.ECANCELED], "a chain that breaks")
        half = caller.submit("nop", flags=abi.LINK)
        expect(caller.result(half), -errno.EINVAL, "a chain whose end is not published with it")
        expect(self.call("nop"), -errno.EINVAL, "its end, published later")
        expect(self.call("nop"), 0, "the next request")

    def client_regions(self):
        region = Region(self.session, 5, 1 << 20)
        expect(region.errno, 0, "RegionAdd")
        expect(Region(self.session, 5, 4096).errno, errno.EBUSY, "an index in use")
        expect(Region(self.session, 0, 4096).errno, errno.EINVAL, "the arena's index")
        expect(Region(self.session, 256, 4096).errno, errno.EINVAL, "an index beyond the last")
        expect(Region(self.session, 6, 4096, seals=0).errno, errno.EINVAL, "a memfd that may shrink")
        region.memory[BLOCK:2 * BLOCK] = pattern(5, 0)
        expect(self.call("write", offset=50 * BLOCK, length=BLOCK, region=5, region_offset=BLOCK), BLOCK, "write")
        expect(self.caller.read(50), pattern(5, 0), "what was written from the region")
        expect(self.call("read", offset=50 * BLOCK, length=BLOCK, region=5, region_offset=0), BLOCK, "read")
        expect(region.memory[:BLOCK], pattern(5, 0), "what was read into the region")
        if self.session.answer.features & abi.VECTORED:
            mixed = self.iovec(16 * BLOCK, (5, 0, BLOCK), (0, 0, BLOCK))
            expect(self.call("writev", offset=51 * BLOCK, **mixed), 2 * BLOCK, "writev over two regions")
        expect(self.call("read", length=BLOCK, region=5, region_offset=1 << 20), -errno.EFAULT, "beyond the region")
        expect(region.remove(), 0, "RegionRemove")
        expect(region.remove(), errno.ENXIO, "RegionRemove again")
        expect(self.call("read", length=BLOCK, region=5), -errno.ENXIO, "a region that is gone")

    def second_queue(self):
        other = Caller(self.session, self.caller.sleep, index=1)
        expect(self.caller.write(60, pattern(6, 0)), BLOCK, "write")
        expect(other.read(60), pattern(6, 0), "what the other queue reads")


def operations(arguments):
    """Every operation of section 9 that was granted."""
    run = Operations(arguments)
    run.second_queue()
    features = run.session.answer.features
    done, missing = [], []
    for bit, part in [(abi.VECTORED, run.vectored), (abi.DISCARD, run.discard),
                      (abi.COMPARE_AND_WRITE, run.compare_and_write), (abi.CANCEL, run.cancel), (abi.ORDER, run.order),
                      (abi.CLIENT_REGIONS, run.client_regions)]:
        if features & bit:
            part()
        (done if features & bit else missing).append(part.__name__)
    run.session.close()
    print(f"served: {' '.join(done) or 'none'}; not granted: {' '.join(missing) or 'none'}")


def dumps(arguments):
    """Section 12: what this module writes is what the page shows."""
    with open(arguments.abi, encoding="utf-8") as page:
        blocks = re.findall(r"^```hex (\S+)\n(.*?)^```", page.read(), re.M | re.S)
    golden = {name: bytes.fromhex("".join(line[6:] for line in text.splitlines())) for name, text in blocks}
    secret = bytes(range(32))
    attached = abi.ATTACHED_PAYLOAD.pack(0x0102030405060708, 2, 0x114000, 1, 2)
    written = {
        "sqe": sqe("write", klass=1, flags=abi.FUA, volume=1, user_data=0x1122334455667788, offset=1 << 20, length=4096,
                   region_offset=8192),
        "sqe-fields": abi.SQE.pack(0x01, 0x02, 0x0403, 0x0605, 0x0807, *(
            int.from_bytes(bytes(range(at, at + 8)), "little") for at in (9, 17, 25, 33)), 0x2C2B2A29, 0x302F2E2D, *(
            int.from_bytes(bytes(range(at, at + 8)), "little") for at in (49, 57))),
        "cqe": abi.CQE.pack(0x1122334455667788, 4096, abi.MERGED),
        "cqe-failed": abi.CQE.pack(0x1122334455667788, -errno.EROFS, 0),
        "iov": abi.IOV.pack(3, 0, 8192, 4 << 30),
        "header": abi.HEADER.pack(abi.HEADER_MAGIC, 1, abi.ACTIVE, 0x0102030405060708, 2, 2, 0, 0x4000, 1 << 20) + bytes(8),
        "attach": abi.message(abi.ATTACH, secret),
        "attached": abi.message(abi.ATTACHED, attached),
        "refused": abi.message(abi.REFUSED, errno.ENOENT.to_bytes(4, "little") + b"token expired"),
        "close": abi.message(abi.CLOSE),
        "region-add": abi.message(abi.REGION_ADD, abi.REGION_PAYLOAD.pack(1, 1 << 30)),
        "region-remove": abi.message(abi.REGION_REMOVE, (1).to_bytes(8, "little")),
        "region-reply": abi.message(abi.REGION_REPLY, abi.REGION_REPLY_PAYLOAD.pack(1, errno.EOPNOTSUPP, 0)),
        "fault": abi.message(abi.FAULT, b"sq_tail"),
        "resize": abi.message(abi.RESIZE, abi.RESIZE_PAYLOAD.pack(1, 1 << 40)),
        "evict": abi.message(abi.EVICT, b"volume data: device gone"),
        "resume": abi.message(abi.RESUME_ASK, abi.RESUME_PAYLOAD.pack(0x0102030405060708, secret)),
        "drain": abi.message(abi.DRAIN, (5000).to_bytes(8, "little")),
    }
    for name, data in written.items():
        expect(data, golden[name], name)
    control = bytearray(512)
    for number, offset in enumerate((abi.SQ_TAIL, abi.CQ_HEAD, abi.CLIENT_SLEEP, abi.SQ_HEAD, abi.DAEMON_SLEEP, abi.CQ_TAIL)):
        control[offset:offset + 4] = (0xA0A0A0A0 + number).to_bytes(4, "little")
    expect(b"".join(control[line:line + 16] for line in range(0, 512, 128)), golden["control-lines"], "control-lines")
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \|", open(arguments.abi, encoding="utf-8").read(), re.M)
    assert all((str(number), name) in rows for name, number in OP.items()), rows
    print(f"{len(written) + 1} dumps agree")


def resume(arguments):
    """Data and answers over as many restarts of the daemon as are told, with a region that comes along."""
    session = open_session(arguments, features=FEATURES | abi.RESUME)
    assert session.answer.features & abi.RESUME, "resume is not granted"
    caller, region = Caller(session, arguments.sleep), Region(session, 3, 1 << 20)
    expect(region.errno, 0, "RegionAdd")
    print("started", flush=True)
    number = 0
    while caller.resumed < arguments.restarts:
        number += 1
        flying = []
        for block in range(8):
            region.memory[block * BLOCK:(block + 1) * BLOCK] = pattern(number, block)
            flying.append(caller.submit("write", offset=block * BLOCK, length=BLOCK, region=3, region_offset=block * BLOCK))
        for user_data in flying:
            expect(caller.result(user_data), BLOCK, "a write")
        for block in range(8):
            expect(caller.read(block), pattern(number, block), f"block {block} in round {number}")
    session.close()
    print(f"resumed {caller.resumed} times in {number} rounds")


SCENARIOS = dict(verify=verify, resume=resume, checks=checks, not_granted=not_granted, fault=fault, events=events, operations=operations, dumps=dumps)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--socket", help="control socket")
    parser.add_argument("--abi", help="ABI.md")
    parser.add_argument("--sleep", action="store_true", help="sleep as in section 7 instead of polling")
    parser.add_argument("--entries", type=int, default=8, help="SQ entries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=1, help="times that the daemon is restarted")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        SCENARIOS[arguments.scenario](arguments)
    except abi.Unsupported as reason:
        print(f"SKIPPED: {reason}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
