from __future__ import annotations

import fcntl
import os
import resource
import stat

import pytest

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import Bell, Segment
from lightllm_mp.shm import segment as module


def test_segment_is_zeroed_sealed_and_shared():
    segment = Segment.create("one", 10_000)
    assert (segment.size, bytes(segment.view)) == (10_000, bytes(10_000))
    other = Segment.attach(os.dup(segment.fd))
    segment.view[9_999] = 7
    assert other.view[9_999] == 7
    with pytest.raises(PermissionError):
        os.ftruncate(other.fd, 5)
    with pytest.raises(PermissionError):
        os.ftruncate(other.fd, 20_000)
    segment.close()
    assert other.view[9_999] == 7
    other.close()


def test_nobody_else_may_open_it_and_it_has_no_name():
    before = set(os.listdir("/dev/shm"))
    segment = Segment.create("private", 1 << 20)
    status = os.fstat(segment.fd)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink) == (0o600, os.getuid(), 0)
    assert os.readlink(f"/proc/self/fd/{segment.fd}") == "/memfd:private (deleted)"
    assert set(os.listdir("/dev/shm")) == before
    segment.close()


def test_all_pages_exist_from_the_start():
    segment = Segment.create("full", 1 << 20)
    assert os.fstat(segment.fd).st_blocks * 512 == 1 << 20
    segment.close()


@pytest.mark.parametrize("size", [1 << 62, 1 << 70])
def test_more_memory_than_there_is_names_the_size_and_the_remedy(size: int, monkeypatch: pytest.MonkeyPatch):
    """The kernel must not be asked: it would kill processes before it refuses."""
    monkeypatch.setattr(os, "posix_fallocate", None)
    with pytest.raises(StartupError, match=rf"no {size} bytes .* 'cache'.* bytes are left.*smaller"):
        Segment.create("cache", size)


def test_a_refusal_of_the_kernel_is_reported_and_leaves_nothing():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(StartupError, match=r"no 131072 bytes .*File too large"):
            Segment.create("cache", 1 << 17)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_close_twice_and_with_a_view_held():
    segment = Segment.create("held", 4096)
    held = segment.view[10:20]
    segment.close()
    segment.close()
    held[0] = 1  # still mapped: no crash, and gone with the last view


def test_attach_refuses_what_is_not_sealed(tmp_path):
    bare = os.memfd_create("bare", os.MFD_ALLOW_SEALING)
    os.ftruncate(bare, 4096)
    with pytest.raises(StartupError, match="not a sealed segment"):
        Segment.attach(bare)
    fcntl.fcntl(bare, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(StartupError, match="not a sealed segment"):
        Segment.attach(bare)
    os.close(bare)
    with open(tmp_path / "file", "wb") as file, pytest.raises(StartupError, match="not shared memory"):
        Segment.attach(file.fileno())


def test_bell_keeps_every_ring_and_shows_its_owner():
    bell = Bell.create(5)
    peer = Bell.attach(*(os.dup(fd) for fd in bell.fds))
    assert peer.actor_id == 5
    peer.ring()
    peer.ring()
    assert os.eventfd_read(bell.fileno()) == 2
    bell.claim(epoch=3)
    assert (peer.pid, peer.epoch, peer.parked) == (os.getpid(), 3, False)
    peer.close()
    bell.close()
    bell.close()


def test_a_bell_whose_counter_is_full_still_rings():
    bell = Bell.create(1)
    os.eventfd_write(bell.event_fd, 2**64 - 2)
    bell.ring()
    assert os.eventfd_read(bell.event_fd) == 2**64 - 2
    bell.close()


def test_bell_attach_refuses_another_page():
    page = Segment.create("page", 4096)
    bell = Bell.create(1)
    with pytest.raises(StartupError, match="not a bell page"):
        Bell.attach(page.fd, bell.event_fd)
    bell.page.view[8] ^= 1
    with pytest.raises(StartupError, match="version"):
        Bell.attach(*bell.fds)
    bell.page.view[8] ^= 1
    bell.page.view[12] ^= 1
    with pytest.raises(StartupError, match="checksum"):
        Bell.attach(*bell.fds)
    page.close()
    bell.close()


def test_a_sparse_one_takes_memory_when_it_is_backed():
    segment = Segment.create("sparse", 1 << 20, sparse=True)
    other = Segment.attach(os.dup(segment.fd))
    assert os.fstat(segment.fd).st_blocks == 0
    assert segment.data() is None
    assert segment.back(65536, 8192)
    assert os.fstat(segment.fd).st_blocks * 512 == 8192
    segment.view[65536 + 4096] = 7
    assert segment.data() == 65536 + 4096
    assert segment.data(65536 + 8192) is None
    assert other.view[65536 + 4096] == 7
    assert segment.back(65536, 8192)  # again: it stays as it is
    assert segment.view[65536 + 4096] == 7
    for one in (segment, other):
        one.close()


def test_a_sparse_one_is_refused_for_lack_of_memory_too():
    with pytest.raises(StartupError, match=r"bytes are left.*smaller"):
        Segment.create("cache", 1 << 62, sparse=True)


def test_backing_that_the_kernel_refuses_is_told(monkeypatch: pytest.MonkeyPatch):
    segment = Segment.create("sparse", 1 << 20, sparse=True)
    monkeypatch.setattr(module, "free_memory", lambda: 1 << 19)
    assert not segment.back(0, 1 << 20)
    assert os.fstat(segment.fd).st_blocks == 0
    segment.close()
