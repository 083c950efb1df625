"""Entries, ring ends and lease of ABI version 1, after ABI.md; section numbers are those of that page.

Memory ordering. The index words need acquire loads, release stores and SeqCst fences (section 6). CPython promises none
of them; this is what makes them anyway, on x86-64, and why the module refuses to run elsewhere:

- One access. An item of a memoryview of format "I" is copied by a memcpy of 4 bytes from or to an aligned address, which
  every compiler in use makes one instruction: it does not tear. Nothing in Python says so.
- Acquire and release. Every plain load and store of x86-64 is one. The compiler cannot move them across each other,
  because each is made by another call of an interpreter function. On a CPU with weaker order (AArch64) nothing here would
  keep an SQE from becoming visible after its sq_tail.
- SeqCst fence. Python has none. Taking and releasing an uncontended threading.Lock is a compare-and-swap, a locked
  instruction, which on x86-64 orders all loads and stores before it against all after it.

The GIL orders the threads of this process. It says nothing about the daemon's.
"""

import errno
import fcntl
import mmap
import os
import platform
import select
import socket
import struct
import sys
import threading
import time

assert sys.byteorder == "little"

PAGE = 4096

# Section 1.
ABI_VERSION = 1
VECTORED, DISCARD, COMPARE_AND_WRITE, CANCEL, ORDER, CLIENT_REGIONS, RESUME = (1 << bit for bit in range(7))

# Section 5 and 9.
OPS = ("nop", "read", "write", "readv", "writev", "flush", "discard", "write-zeroes", "compare-and-write", "cancel")
OP = {name: number for number, name in enumerate(OPS)}
FUA, LINK, BARRIER = 1, 2, 4
REPLAYED, MERGED, OVERDUE = 1, 2, 4

SQE = struct.Struct("<BBHHHQQQQIIQQ")
CQE = struct.Struct("<QiI")
IOV = struct.Struct("<HHIQ")
assert (SQE.size, CQE.size, IOV.size) == (64, 16, 16)

# Section 4.
HEADER = struct.Struct("<QIIQQIIQQ")
HEADER_MAGIC = 0x48536F6972726566
HEADER_STATE_WORD = 12 // 4
ACTIVE, DRAINING, FAULTED, CLOSED = 1, 2, 3, 4
SQ_TAIL, CQ_HEAD, CLIENT_SLEEP, SQ_HEAD, DAEMON_SLEEP, CQ_TAIL = 0, 128, 132, 256, 260, 384

# Section 3.
LEASE_HEADER = struct.Struct("<IHHII")
LEASE_MAGIC = 0x4C726566
LEASE_MESSAGE_MAX = 1024
ATTACH, ATTACHED, REFUSED, CLOSE, REGION_ADD, REGION_REMOVE, REGION_REPLY, RESUME_ASK = range(1, 9)
FAULT, RESIZE, EVICT, DRAIN = range(16, 20)
ATTACHED_PAYLOAD = struct.Struct("<QQQII")
RESUME_PAYLOAD = struct.Struct("<Q32s")
REGION_PAYLOAD = struct.Struct("<H6xQ")
REGION_REPLY_PAYLOAD = struct.Struct("<H6xiI")
RESIZE_PAYLOAD = struct.Struct("<H6xQ")

U32 = 0xFFFF_FFFF


class Unsupported(Exception):
    """This machine cannot run the client."""


class SessionOver(Exception):
    """The lease or a CQ doorbell is closed, or the daemon said Fault. Refused by the daemon: with its errno."""

    def __init__(self, reason, number=None):
        super().__init__(reason)
        self.number = number


def check_machine():
    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unsupported(f"CPython gives no memory ordering on {platform.machine()}; see tests/python/abi.py")


_fence = threading.Lock()


def fence():
    """SeqCst fence: see the top."""
    with _fence:
        pass


def sqe(op, *, klass=0, flags=0, volume=0, region=0, user_data=0, offset=0, length=0, region_offset=0, iov_count=0,
        timeout_us=0, arg=0, reserved=0):
    number = OP[op] if isinstance(op, str) else op
    return SQE.pack(number, klass, flags, volume, region, user_data, offset, length, region_offset, iov_count, timeout_us,
                    arg, reserved)


def message(kind, payload=b""):
    return LEASE_HEADER.pack(LEASE_MAGIC, 1, kind, len(payload), 0) + payload


def parse(packet):
    """Kind and payload of a lease message; its length is exact."""
    magic, version, kind, length, zero = LEASE_HEADER.unpack_from(packet)
    assert (magic, version, zero) == (LEASE_MAGIC, 1, 0), packet
    assert len(packet) == LEASE_HEADER.size + length, packet
    return kind, packet[LEASE_HEADER.size:]


class Completion:
    __slots__ = ("user_data", "result", "flags")

    def __init__(self, user_data, result, flags):
        self.user_data, self.result, self.flags = user_data, result, flags


class Lease:
    """The connection a session lives by (section 3), and what was heard over it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.events = []
        self.replies = []
        self.over = None
        # Whether the daemon wants the end: then there is nothing to resume.
        self.farewell = False

    def attach(self, token, fds_max):
        self.socket.send(message(ATTACH, token))
        return self._attached(fds_max)

    def resume(self, session_id, secret, fds, fds_max):
        socket.send_fds(self.socket, [message(RESUME_ASK, RESUME_PAYLOAD.pack(session_id, secret))], fds)
        return self._attached(fds_max)

    def _attached(self, fds_max):
        packet, fds, _, _ = socket.recv_fds(self.socket, LEASE_MESSAGE_MAX, fds_max, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            raise ConnectionResetError("the daemon closed the attach socket without an answer")
        kind, payload = parse(packet)
        if kind == REFUSED:
            number, = struct.unpack_from("<i", payload)
            raise SessionOver(f"refused: {payload[4:].decode()} ({os.strerror(number)})", number)
        assert kind == ATTACHED, kind
        self.socket.setblocking(False)
        return ATTACHED_PAYLOAD.unpack(payload), fds

    def listen(self):
        """Takes in what has come, without waiting."""
        while self.over is None:
            try:
                packet = self.socket.recv(LEASE_MESSAGE_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self.over = self.over or "the lease is closed"
                return
            kind, payload = parse(packet)
            if kind == REGION_REPLY:
                index, number, zero = REGION_REPLY_PAYLOAD.unpack(payload)
                assert zero == 0
                self.replies.append((index, number))
            elif kind == RESIZE:
                self.events.append((kind, *RESIZE_PAYLOAD.unpack(payload)))
            elif kind == FAULT:
                self.over, self.farewell = f"fault: {payload.decode()}", True
            else:
                self.farewell |= kind == EVICT
                self.events.append((kind, payload))

    def call(self, packet, fds=()):
        """Sends RegionAdd or RegionRemove and returns the errno of its RegionReply; replies come in order."""
        socket.send_fds(self.socket, [packet], fds)
        deadline = time.monotonic() + 20
        while not self.replies:
            assert time.monotonic() < deadline, "no RegionReply within 20 s"
            select.select([self.socket], [], [], 1)
            self.listen()
            if self.over:
                raise SessionOver(self.over)
        return self.replies.pop(0)[1]

    def close(self):
        """Sends Close, and waits until the daemon has let the session go."""
        if self.over is None:
            self.socket.setblocking(True)
            self.socket.settimeout(20)
            self.socket.send(message(CLOSE))
            while self.socket.recv(LEASE_MESSAGE_MAX):
                pass
        self.socket.close()


class Queue:
    """Both client ends of a queue (sections 6 and 7). Its own indices live here and are never read back."""

    def __init__(self, words, memory, layout, doorbell, cq_doorbell, lease):
        self.words, self.memory, self.layout = words, memory, layout
        self.doorbell, self.cq_doorbell, self.lease = doorbell, cq_doorbell, lease
        self.tail = self.published = self.head = self.released = 0
        self.sq_head_seen = 0
        self.rung_for = 0
        self.epoch = 0
        self.rings = self.sleeps = 0
        self._listen()

    def _listen(self):
        self.poll = select.poll()
        self.poll.register(self.cq_doorbell, select.POLLIN)
        self.poll.register(self.lease.socket, select.POLLIN)

    def renew(self, doorbell, cq_doorbell, lease):
        """After Resume: other descriptors, the same indices."""
        self.doorbell, self.cq_doorbell, self.lease = doorbell, cq_doorbell, lease
        self._listen()
        # What was published before may have rung the old doorbell.
        os.write(doorbell, struct.pack("=Q", 1))

    def _word(self, offset):
        return (self.layout.control_offset + offset) // 4

    def _load(self, offset):
        return self.words[self._word(offset)]

    def _store(self, offset, value):
        self.words[self._word(offset)] = value

    def room(self):
        """SQEs that may be published: slots and places of answers (section 6, Room)."""
        slots = self.layout.sq_entries - ((self.tail - self.sq_head_seen) & U32)
        if slots == 0:
            self.sq_head_seen = self._load(SQ_HEAD)
            slots = self.layout.sq_entries - ((self.tail - self.sq_head_seen) & U32)
        answers = self.layout.cq_entries - ((self.tail - self.released) & U32)
        return min(slots, answers)

    def push(self, entry):
        """Writes an SQE; the daemon sees it after publish(). False: no room."""
        if self.room() <= 0:
            return False
        at = self.layout.sqes_offset + 64 * (self.tail % self.layout.sq_entries)
        self.memory[at:at + 64] = entry
        self.tail = (self.tail + 1) & U32
        return True

    def publish(self):
        if self.tail == self.published:
            return
        self._store(SQ_TAIL, self.tail)
        self.published = self.tail
        fence()
        epoch = self._load(DAEMON_SLEEP)
        if epoch % 2 == 0:
            self.rung_for = 0
        elif epoch != self.rung_for:
            self.rung_for = epoch
            self.rings += 1
            try:
                os.write(self.doorbell, struct.pack("=Q", 1))
            except BlockingIOError:
                pass

    def reap(self):
        """The completions that are there. Gives their places back."""
        tail = self._load(CQ_TAIL)
        ahead = (tail - self.head) & U32
        if ahead > self.layout.cq_entries:
            raise SessionOver(f"cq_tail {tail} is {ahead} ahead of cq_head")
        found = []
        for _ in range(ahead):
            at = self.layout.cqes_offset + 16 * (self.head % self.layout.cq_entries)
            found.append(Completion(*CQE.unpack_from(self.memory, at)))
            self.head = (self.head + 1) & U32
        if found:
            self._store(CQ_HEAD, self.head)
            self.released = self.head
        return found

    def wait(self, sleep, patience=20.0):
        """At least one completion: polling, or asleep as in section 7."""
        deadline = time.monotonic() + patience
        while True:
            found = self.reap() or (self._sleep(deadline) if sleep else [])
            if found:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"no completion within {patience} s")
            if not sleep:
                time.sleep(0)  # Another thread, or the daemon on a machine with one CPU, gets its turn.
                self.lease.listen()
            if self.lease.over:
                raise SessionOver(self.lease.over)

    def _sleep(self, deadline):
        """One sleep; what was found after it."""
        self.epoch = (self.epoch + 1) & U32  # Odd, and new.
        self._store(CLIENT_SLEEP, self.epoch)
        fence()
        if self._load(CQ_TAIL) == self.head:
            self.sleeps += 1
            left = max(0, int((deadline - time.monotonic()) * 1000))
            for fd, _ in self.poll.poll(left):
                if fd == self.cq_doorbell:
                    self._drain()
                else:
                    self.lease.listen()
        self.epoch = (self.epoch + 1) & U32
        self._store(CLIENT_SLEEP, self.epoch)
        return self.reap()

    def _drain(self):
        try:
            drained = os.read(self.cq_doorbell, 4096)
        except BlockingIOError:
            return
        if not drained:
            # The lease says whether the session is over, or was only left by its daemon; it is closed next.
            select.select([self.lease.socket], [], [], 20)
            self.lease.listen()
            self.lease.over = self.lease.over or "the CQ doorbell is closed"


class Session:
    """Opened by Sessions.Open (`answer`), then attached and mapped (sections 3 and 4)."""

    def __init__(self, answer):
        check_machine()
        self.answer = answer
        self.regions = {}
        self.lease = Lease(answer.attach_socket)
        fds_max = 1 + answer.doorbells + len(answer.queues)
        (session_id, epoch, memory_bytes, doorbells, queues), fds = self.lease.attach(answer.attach_token, fds_max)
        assert (session_id, memory_bytes, doorbells, queues) == \
            (answer.session_id, answer.memory_bytes, answer.doorbells, len(answer.queues))
        assert len(fds) == fds_max, fds
        self.doorbells, cq_doorbells = fds[1:1 + doorbells], fds[1 + doorbells:]
        self._check_layout(answer)
        self.memfd = fds[0]
        self.memory = self._map(self.memfd, memory_bytes)
        self.words = memoryview(self.memory).cast("I")
        self.arena = memoryview(self.memory)[answer.arena_offset:answer.arena_offset + answer.arena_bytes]
        self._check_header(session_id, epoch)
        for fd in cq_doorbells:
            os.set_blocking(fd, False)
        self.cq_doorbells = cq_doorbells
        self.queues = [Queue(self.words, self.memory, layout, self.doorbells[layout.doorbell], doorbell, self.lease)
                       for layout, doorbell in zip(answer.queues, cq_doorbells, strict=True)]

    @staticmethod
    def _check_layout(answer):
        """Aligned, in bounds, disjoint (section 4)."""
        assert (answer.abi, answer.sqe_bytes, answer.cqe_bytes) == (ABI_VERSION, 64, 16)
        parts = [(0, PAGE, PAGE), (answer.arena_offset, answer.arena_bytes, PAGE)]
        for queue in answer.queues:
            assert 0 < queue.sq_entries <= queue.cq_entries and queue.doorbell < answer.doorbells
            assert all(count & (count - 1) == 0 for count in (queue.sq_entries, queue.cq_entries))
            parts += [(queue.control_offset, 512, PAGE), (queue.sqes_offset, 64 * queue.sq_entries, 64),
                      (queue.cqes_offset, 16 * queue.cq_entries, 16)]
        end = 0
        for offset, length, align in sorted(parts):
            assert offset % align == 0 and offset >= end, (offset, length, align, end)
            end = offset + length
        assert end <= answer.memory_bytes

    @staticmethod
    def _map(fd, memory_bytes):
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_SHRINK, seals
        assert os.fstat(fd).st_size >= memory_bytes
        memory = mmap.mmap(fd, memory_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        memory.madvise(mmap.MADV_DONTFORK)
        return memory

    def resume(self, patience=20.0):
        """Goes on at the next daemon (section 3, Resume)."""
        if self.lease.farewell:
            raise SessionOver(self.lease.over)
        self.lease.socket.close()
        for fd in self.doorbells + self.cq_doorbells:
            os.close(fd)
        answer, deadline, fds = self.answer, time.monotonic() + patience, [self.memfd]
        fds += [region.memfd for _, region in sorted(self.regions.items())]
        fds_max = answer.doorbells + len(answer.queues)
        while True:
            try:
                self.lease = Lease(answer.attach_socket)
                attached, fds = self.lease.resume(answer.session_id, answer.resume_secret, fds, fds_max)
                break
            except SessionOver as refused:
                if refused.number not in (errno.ESHUTDOWN, errno.ETIMEDOUT, errno.ENOMEM, errno.EBUSY):
                    raise
                failed = refused
            except (FileNotFoundError, ConnectionError) as error:
                failed = error
            if time.monotonic() > deadline:
                raise SessionOver(f"no daemon within {patience} s: {failed}")
            time.sleep(0.01)
        session_id, epoch, memory_bytes, doorbells, queues = attached
        assert (session_id, memory_bytes, doorbells, queues) == \
            (answer.session_id, answer.memory_bytes, answer.doorbells, len(answer.queues)), attached
        assert len(fds) == fds_max, fds
        self._check_header(session_id, epoch)
        self.doorbells, self.cq_doorbells = fds[:doorbells], fds[doorbells:]
        for fd in self.cq_doorbells:
            os.set_blocking(fd, False)
        for queue, cq_doorbell in zip(self.queues, self.cq_doorbells, strict=True):
            queue.renew(self.doorbells[queue.layout.doorbell], cq_doorbell, self.lease)

    def _check_header(self, session_id, epoch):
        header = HEADER.unpack_from(self.memory)
        answer = self.answer
        assert header == (HEADER_MAGIC, ABI_VERSION, ACTIVE, session_id, epoch, len(answer.queues), 0,
                          answer.arena_offset, answer.arena_bytes), header
        assert not any(self.memory[HEADER.size:PAGE])

    def state(self):
        return self.words[HEADER_STATE_WORD]

    def volume(self, index):
        return self.answer.volumes[index]

    def close(self):
        self.lease.close()
        for fd in self.doorbells + self.cq_doorbells + [self.memfd]:
            os.close(fd)


class Region:
    """Memory of the client's own (section 3, RegionAdd)."""

    def __init__(self, session, index, length, seals=fcntl.F_SEAL_SHRINK):
        self.session, self.index = session, index
        fd = os.memfd_create("ferrio-python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        self.memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.memory.madvise(mmap.MADV_DONTFORK)
        self.memfd = fd
        self.errno = session.lease.call(message(REGION_ADD, REGION_PAYLOAD.pack(index, length)), [fd])
        if self.errno == 0:
            session.regions[index] = self

    def remove(self):
        number = self.session.lease.call(message(REGION_REMOVE, struct.pack("<H6x", self.index)))
        if number == 0:
            del self.session.regions[self.index]
        return number


