import socket

import pytest

from tfdp.launch import machine


def test_free_ports_can_be_listened_on():
    ports = machine.free_ports(5)
    assert len(set(ports)) == 5
    sockets = [socket.create_server(("127.0.0.1", port)) for port in ports]
    for one in sockets:
        one.close()


def test_a_taken_port_is_left_out(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(machine, "_LOWEST_PORT", port)
        monkeypatch.setattr(machine, "_first_ephemeral_port", lambda: port + 1)
        with pytest.raises(OSError, match="1 ports are needed, but only 0 are free"):
            machine.free_ports(1)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", ("0",)),
        ("0, 2", ("0", "2")),
        ("1,-1,0", ("1",)),
        ("GPU-8f3a,MIG-77c0", ("GPU-8f3a", "MIG-77c0")),
    ],
)
def test_visible_gpus(text, ids):
    assert machine.visible_gpus(text) == ids
    assert machine.gpus({"CUDA_VISIBLE_DEVICES": text}) == ids


TWO_GPUS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8f3a)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-77c0)
"""
SLICED = """\
GPU 0: NVIDIA A100 (UUID: GPU-8f3a)
  MIG 3g.20gb     Device  0: (UUID: MIG-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-2)
GPU 1: NVIDIA A100 (UUID: GPU-77c0)
"""


@pytest.mark.parametrize(
    ("text", "ids"),
    [(TWO_GPUS, ("0", "1")), (SLICED, ("MIG-1", "MIG-2", "1")), ("No devices found.\n", ())],
)
def test_listed_gpus(text, ids):
    assert machine.listed_gpus(text) == ids


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ("echo 'GPU 0: X (UUID: GPU-1)'", ("0",)),
        ("echo 'GPU 0: X (UUID: GPU-1)'; exit 9", ()),
        ("echo failed; exit 6", ()),
    ],
)
def test_nvidia_smi_is_asked(tmp_path, script, ids):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 1\n{script}\n')
    program.chmod(0o755)
    assert machine.gpus({"PATH": str(tmp_path)}) == ids


def test_a_driver_that_hangs_is_not_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_SMI_SECONDS", 0.1)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    assert machine.gpus({"PATH": str(tmp_path)}) == ()
    assert capsys.readouterr().err == (
        "GPUs are left undivided: nvidia-smi failed (TimeoutExpired).\n"
    )


def test_without_nvidia_smi(tmp_path):
    assert machine.gpus({"PATH": str(tmp_path)}) == ()


@pytest.mark.parametrize(
    ("ids", "sizes"),
    [
        (("0", "1"), (81559 << 20, 40960 << 20)),
        (("GPU-77c0",), (40960 << 20,)),
        (("MIG-1",), ()),  # nvidia-smi does not tell of a slice
        (("2",), ()),
    ],
)
def test_listed_memory(ids, sizes):
    text = "0, GPU-8f3a, 81559\n1, GPU-77c0, 40960\n2, GPU-3, [N/A]\n"
    assert machine.listed_memory(text, ids) == sizes
