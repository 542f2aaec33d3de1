"""Volumes of a Heliotrope cluster from Python, through the C library. Copy what you need of it.

    python3 example.py host-7.helio disk            # writes, flushes, reads back; the first two blocks are overwritten
    python3 example.py host-7.helio vault prod.key  # the same of an encrypted volume

Needs libheliotrope.so.0 where the linker looks (LD_LIBRARY_PATH), and nothing beside the standard library.
"""

import ctypes
import os
import sys
import threading
from ctypes import CFUNCTYPE, POINTER, byref, c_char, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

FUA, READ_ONLY = 1, 2


class OpenOptions(ctypes.Structure):
    """`helio_open_options`."""

    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("give_up_ms", c_uint64),
        ("journal_bytes", c_uint64),
        ("key_file", c_char_p),
        ("key_command", c_char_p),
    ]


class VolumeInfo(ctypes.Structure):
    """`helio_volume_info`."""

    _fields_ = [("size", c_uint32), ("flags", c_uint32), ("volume_bytes", c_uint64), ("name", c_char_p)]


Callback = CFUNCTYPE(None, c_void_p, c_int)
VolumeVisitor = CFUNCTYPE(c_int, c_void_p, POINTER(VolumeInfo))

lib = ctypes.CDLL("libheliotrope.so.0")
lib.helio_last_error.restype = c_char_p
lib.helio_version.restype = c_char_p
lib.helio_volume_size.restype = c_int64
# Without these a 64-bit argument would be cut to an int.
lib.helio_cluster_open.argtypes = [c_char_p, c_void_p, POINTER(c_void_p)]
lib.helio_cluster_close.argtypes = [c_void_p]
lib.helio_cluster_volumes.argtypes = [c_void_p, c_uint64, VolumeVisitor, c_void_p]
lib.helio_volume_open.argtypes = [c_void_p, c_char_p, POINTER(OpenOptions), POINTER(c_void_p)]
lib.helio_volume_close.argtypes = [c_void_p]
lib.helio_volume_size.argtypes = [c_void_p]
lib.helio_read.argtypes = [c_void_p, c_uint64, c_void_p, c_size_t, c_uint32]
lib.helio_write.argtypes = [c_void_p, c_uint64, c_char_p, c_size_t, c_uint32]
lib.helio_flush.argtypes = [c_void_p, c_uint32]
lib.helio_aio_read.argtypes = [c_void_p, c_uint64, c_void_p, c_size_t, c_uint32, Callback, c_void_p]


def check(result):
    """The result, or an `OSError` with the library's own sentence."""
    if result < 0:
        raise OSError(-result, lib.helio_last_error().decode())
    return result


class Cluster:
    """A cluster, by a file of credentials."""

    def __init__(self, credentials):
        self.handle = c_void_p()
        check(lib.helio_cluster_open(os.fsencode(credentials), None, byref(self.handle)))

    def volumes(self, give_up_ms=0):
        """Name and size of each volume and snapshot."""
        found = []

        @VolumeVisitor
        def visit(_user, info):
            found.append((info.contents.name.decode(), info.contents.volume_bytes))
            return 0

        check(lib.helio_cluster_volumes(self.handle, give_up_ms, visit, None))
        return found

    def open(self, name, read_only=False, give_up_ms=0, key_file=None):
        return Volume(self, name, read_only, give_up_ms, key_file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib.helio_cluster_close(self.handle)


class Volume:
    """A volume in use. `with` flushes and closes it."""

    def __init__(self, cluster, name, read_only, give_up_ms, key_file):
        self.handle = c_void_p()
        flags = READ_ONLY if read_only else 0
        key_file = key_file and os.fsencode(key_file)
        options = OpenOptions(ctypes.sizeof(OpenOptions), flags, give_up_ms, 0, key_file, None)
        check(lib.helio_volume_open(cluster.handle, name.encode(), byref(options), byref(self.handle)))

    @property
    def size(self):
        return check(lib.helio_volume_size(self.handle))

    def read(self, offset, length):
        buffer = (c_char * length)()
        check(lib.helio_read(self.handle, offset, buffer, length, 0))
        return buffer.raw

    def write(self, offset, data, fua=False):
        check(lib.helio_write(self.handle, offset, data, len(data), FUA if fua else 0))

    def flush(self):
        check(lib.helio_flush(self.handle, 0))

    def read_many(self, offsets, length):
        """Reads at many places at once; the callbacks come on a thread of the library."""
        buffers = [(c_char * length)() for _ in offsets]
        results, arrived = {}, threading.Semaphore(0)

        @Callback
        def done(number, result):
            results[number or 0] = result
            arrived.release()

        begun = 0
        try:
            for number, offset in enumerate(offsets):
                check(lib.helio_aio_read(self.handle, offset, buffers[number], length, 0, done, number))
                begun += 1
        finally:
            # The buffers and `done` must outlive every request.
            for _ in range(begun):
                arrived.acquire()
        failed = [result for result in results.values() if result < 0]
        if failed:
            raise OSError(-failed[0], os.strerror(-failed[0]))
        return [buffer.raw for buffer in buffers]

    def close(self):
        handle, self.handle = self.handle, c_void_p()
        check(lib.helio_volume_close(handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    credentials, name, key_file = (sys.argv[1:] + [None])[:3]
    print("libheliotrope", lib.helio_version().decode())
    with Cluster(credentials) as cluster:
        print("volumes:", cluster.volumes())
        with cluster.open(name, key_file=key_file) as disk:
            blocks = [bytes([7]) * 4096, bytes([8]) * 4096]
            disk.write(0, b"".join(blocks))
            disk.write(8192, bytes(4096), fua=True)
            disk.flush()
            assert disk.read(0, 4096) == blocks[0]
            assert disk.read_many([0, 4096, 8192], 4096) == blocks + [bytes(4096)]
            try:
                disk.read(disk.size, 512)
            except OSError as error:
                print("beyond the end:", error)
            else:
                sys.exit("a read beyond the end succeeded")
        with cluster.open(name, read_only=True, key_file=key_file) as disk:
            assert disk.read(4096, 4096) == blocks[1]
            try:
                disk.write(0, bytes(512))
            except OSError as error:
                print("opened for reading:", error)
            else:
                sys.exit("a write to what was opened for reading succeeded")
    print("all is well")


if __name__ == "__main__":
    main()
