"""Makes every call of the C library, with what it must give: `every_call.py CREDENTIALS`.

The cluster has a node `a`, a volume `disk` of 64 MiB that was never written, and `disk@monday` of it. In Python, because
mistakes end in an exception. `example` is client-lib/c/example.py.
"""

import sys
import threading
from ctypes import (
    CFUNCTYPE, POINTER, Structure, addressof, byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p,
    create_string_buffer, sizeof,
)

import example
from example import check, lib

MIB = 1 << 20
DATA, ZERO = 1, 2
RESIDENCY = 8

Done = CFUNCTYPE(None, c_void_p, c_int)
VisitExtent = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64, c_uint32)


class NodeInfo(Structure):
    _fields_ = [
        ("size", c_uint32), ("flags", c_uint32), ("name", c_char_p), ("provider", c_char_p), ("address", c_char_p),
    ]


class Status(Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("size", "state", "flags", "sector", "block", "request_max")),
        *((name, c_uint64) for name in ("volume_bytes", "epoch", "journal_bytes")),
        ("owner", c_char * 64), ("reason", c_char * 256),
    ]


class Part(Structure):
    _fields_ = [("base", c_void_p), ("length", c_size_t)]


VisitNode = CFUNCTYPE(c_int, c_void_p, POINTER(NodeInfo))
Watch = CFUNCTYPE(None, c_void_p, POINTER(Status))

RANGE = [c_uint64, c_uint64, c_uint32]
BUFFER = [c_uint64, c_void_p, c_size_t, c_uint32]
PARTS = [c_uint64, c_void_p, c_int, c_uint32]
CALLBACK = [Done, c_void_p]
for name, arguments in {
    "cluster_nodes": [c_uint64, VisitNode, c_void_p],
    "volume_status": [POINTER(Status)],
    "volume_watch": [Watch, c_void_p],
    "volume_cancel": [],
    "extents": [*RANGE, VisitExtent, c_void_p],
    "write_zeroes": RANGE, "discard": RANGE, "cache": RANGE, "readv": PARTS, "writev": PARTS,
    "aio_write": [*BUFFER, *CALLBACK], "aio_readv": [*PARTS, *CALLBACK], "aio_writev": [*PARTS, *CALLBACK],
    "aio_write_zeroes": [*RANGE, *CALLBACK], "aio_discard": [*RANGE, *CALLBACK], "aio_cache": [*RANGE, *CALLBACK],
    "aio_flush": [c_uint32, *CALLBACK],
}.items():
    getattr(lib, "helio_" + name).argtypes = [c_void_p, *arguments]


def extents(disk, offset, length, flags=0):
    """Offset, length and state of each run, those in one state as one."""
    found = []

    @VisitExtent
    def visit(_, at, run, state):
        if found and found[-1][2] == state:
            before, so_far, _ = found.pop()
            at, run = before, so_far + run
        found.append((at, run, state))
        return 0

    check(lib.helio_extents(disk.handle, offset, length, flags, visit, None))
    assert found[0][0] == offset and sum(run for _, run, _ in found) == length, found
    return found


def wait(begin, *arguments):
    """Begins a request and waits until its callback is called."""
    arrived, results = threading.Event(), []

    @Done
    def done(_, result):
        results.append(result)
        arrived.set()

    check(begin(*arguments, done, None))
    arrived.wait()
    return check(results[0])


def parts(*buffers):
    return (Part * len(buffers))(*(Part(addressof(buffer), sizeof(buffer)) for buffer in buffers)), len(buffers)


def refused(errno, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == errno and error.strerror, error
    else:
        sys.exit(f"{call} was done")


def long_ones(disk):
    # Longer than one request may be, and no multiple of it.
    blocks = 40 * MIB // 4096 + 1
    data = bytes(range(256)) * (blocks * 16)
    disk.write(4096, data[:-512])
    assert disk.read(4096, len(data) - 512) == data[:-512]
    assert disk.read(0, 4096) == bytes(4096)
    end = 4096 + blocks * 4096
    assert extents(disk, 0, disk.size) == [(0, 4096, ZERO), (4096, end - 4096, DATA), (end, disk.size - end, ZERO)]
    assert {state for _, _, state in extents(disk, 0, disk.size, RESIDENCY)} == {DATA, ZERO}
    check(lib.helio_write_zeroes(disk.handle, 4096, 32 * MIB, example.FUA))
    check(lib.helio_discard(disk.handle, 4096 + 32 * MIB, 8 * MIB + 4096, 0))
    assert disk.read(0, 48 * MIB) == bytes(48 * MIB)
    assert extents(disk, 4096, 32 * MIB) == [(4096, 32 * MIB, ZERO)]
    check(lib.helio_cache(disk.handle, 0, disk.size, 0))



def vectors_and_requests(disk):
    handle = disk.handle
    a, b = create_string_buffer(b"a" * 512, 512), create_string_buffer(b"b" * 1024, 1024)
    c, d = create_string_buffer(1024), create_string_buffer(512)
    check(lib.helio_writev(handle, 512, *parts(a, b), example.FUA))
    check(lib.helio_readv(handle, 512, *parts(c, d), 0))
    assert c.raw + d.raw == a.raw + b.raw
    wait(lib.helio_aio_writev, handle, 8192, *parts(b, a), example.FUA)
    wait(lib.helio_aio_readv, handle, 8192, *parts(d, c), 0)
    assert d.raw + c.raw == b.raw + a.raw
    wait(lib.helio_aio_write, handle, 16384, addressof(a), 512, 0)
    wait(lib.helio_aio_discard, handle, 8192, 512, 0)
    wait(lib.helio_aio_write_zeroes, handle, 8704, 512, example.FUA)
    wait(lib.helio_aio_cache, handle, 0, 4096, 0)
    wait(lib.helio_aio_flush, handle, 0)
    assert disk.read(8192, 1536) == bytes(1024) + a.raw
    assert disk.read(16384, 512) == a.raw


def standing(disk):
    states, told = [], threading.Event()

    @Watch
    def watch(_, status):
        states.append((status.contents.state, status.contents.owner))
        told.set()

    check(lib.helio_volume_watch(disk.handle, watch, None))
    told.wait()
    status = Status(size=sizeof(Status))
    check(lib.helio_volume_status(disk.handle, byref(status)))
    assert (status.state, status.flags, status.owner, status.epoch, status.reason) == (1, 0, b"a", 1, b"")
    assert (status.sector, status.block, status.request_max) == (512, 4096, 32 * MIB)
    assert (status.volume_bytes, status.journal_bytes) == (64 * MIB, 0)
    # It is called until the volume is closed, so it must live as long.
    return states, watch


def main():
    with example.Cluster(sys.argv[1]) as cluster:
        nodes = []

        @VisitNode
        def visit(_, node):
            nodes.append((node.contents.name, node.contents.provider))
            return 7

        assert lib.helio_cluster_nodes(cluster.handle, 0, visit, None) == 7
        assert nodes == [(b"a", b"cloud-a")], nodes
        with cluster.open("disk") as disk:
            long_ones(disk)
            vectors_and_requests(disk)
            refused(28, disk.write, disk.size - 512, bytes(1024))
            refused(22, disk.write, 100, bytes(512))
            refused(22, disk.read, disk.size, 512)
            states, watch = standing(disk)
        assert states == [(1, b"a")], states
        with cluster.open("disk@monday") as monday:
            status = Status(size=sizeof(Status))
            check(lib.helio_volume_status(monday.handle, byref(status)))
            assert status.flags == example.READ_ONLY
            assert extents(monday, 0, monday.size) == [(0, monday.size, ZERO)]
            refused(30, monday.write, 0, bytes(512))
        disk = cluster.open("disk")
    # The handle of a cluster may go before those of its volumes.
    disk.write(0, b"z" * 512)
    assert disk.read(0, 512) == b"z" * 512
    check(lib.helio_volume_cancel(disk.handle))
    refused(125, disk.flush)
    refused(125, disk.close)
    refused(9, disk.flush)
    print("every call is well")


main()
