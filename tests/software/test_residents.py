"""Operands that stay on a device: where they lie, what is sent again, what is not."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat.devices.residents import Residents
from sat.devices.staged import StagedDevice
from sat.rtl.axi import BOUNDARY_BYTES

END = 64 * BOUNDARY_BYTES


class Owner:
    """Something that can be referred to weakly."""


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.integers(1, 20 * BOUNDARY_BYTES),
            st.integers(0, 40) | st.integers(0, 40 * BOUNDARY_BYTES),
        ),
        max_size=40,
    ),
    st.sampled_from([1, 4]),
)
def test_blocks_never_overlap_and_the_last_used_stay(calls, ports):
    boundary = ports * BOUNDARY_BYTES
    residents, owners = Residents(boundary), [Owner() for _ in range(8)]
    placed: dict[int, range] = {}
    order: list[int] = []
    for number, size, floor in calls:
        before = dict(placed)
        placement = residents.place(owners[number], size, floor, END)
        block = placement.block
        assert block.start % boundary == 0 and floor <= block.start
        assert len(block) == size and block.stop <= END
        known = before.get(number)
        if placement.contents is not None:
            assert block == known == placement.contents
        placement.contents = block
        placed[number] = block
        order = [n for n in order if n != number] + [number]
        for other in list(placed):
            if other != number and residents.find(owners[other]) is None:
                del placed[other]
                order.remove(other)
        for other, range_ in placed.items():
            assert range_.start >= floor
            assert other == number or range_.stop <= block.start or block.stop <= range_.start
        # What was evicted for room was older than all that stayed above the floor.
        gone = [n for n in before if n not in placed and before[n].start >= floor]
        stayed = [n for n in placed if n != number and n in before]
        ages = {n: i for i, n in enumerate([*(n for n in gone), *order])}
        assert all(ages[g] < ages[s] for g in gone for s in stayed)
    assert len(residents) == len(placed)


def test_a_block_is_free_again_when_its_owner_is_gone():
    residents, owner = Residents(BOUNDARY_BYTES), Owner()
    first = residents.place(owner, END - BOUNDARY_BYTES, 0, END).block
    del owner
    gc.collect()
    assert len(residents) == 0
    other = Owner()
    assert residents.place(other, END - BOUNDARY_BYTES, 0, END).block == first
    with pytest.raises(ValueError, match="must fit between 0x1 and 0x40000; make the memory"):
        residents.place(Owner(), END, 1, END)


A = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).half()
B = torch.randn(32, 6, generator=torch.Generator().manual_seed(2)).half()


@pytest.mark.parametrize("pattern", [None, "2:8"])
def test_golden_device_counts_what_would_be_sent(pattern):
    w = B if pattern is None else sat.prune(B, pattern)
    kept, plain = sat.resident(w), w
    size = 2 * B.numel() if pattern is None else 3 * B.numel() // 4
    with sat.device("golden") as dev, sat.device("golden") as other:
        want = dev.matmul(A, plain)
        sent = dev.last_run.bytes_host
        assert sent == 2 * A.numel() + size + 4 * want.numel()
        for number in range(3):
            assert torch.equal(dev.matmul(A, kept), want)
            assert dev.last_run.bytes_host == sent - (size if number else 0)
            assert dev.last_run.bytes_kept == (size if number else 0)
        assert torch.equal(other.matmul(A, kept), want)
        assert other.last_run.bytes_kept == 0


def test_resident_copies_what_it_is_given():
    b = B.clone()
    kept = sat.resident(b)
    with sat.device("golden") as dev:
        want = dev.matmul(A, B)
        b.zero_()
        assert torch.equal(dev.matmul(A, kept), want)
        with pytest.raises(ValueError, match=r"a is \(5, 31\) and b is \(32, 6\)"):
            dev.matmul(A[:, 1:], kept)
    with pytest.raises(TypeError, match="b has dtype float32: operands are float16"):
        sat.resident(B.float())
    with pytest.raises(ValueError, match="groups along axis 0"):
        sat.resident(sat.prune(B, "2:2", axis=1))


def linear(scheme="bdwp"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    sat.sparsify_(model, scheme, "2:8")
    return model


def test_a_sparse_layers_copies_are_sent_once_until_the_weight_changes():
    model, x = linear(), torch.randn(4, 32)
    ff = sum(3 * layer.weight.numel() // 4 for layer in (model[0], model[2]))
    bp = 3 * model[2].weight.numel() // 4
    bytes_kept = []
    with sat.offload("golden") as report:
        for step in range(3):
            model(x).sum().backward()
            bytes_kept.append(sum(d.bytes_kept for d in report.devices.values()))
            if step == 1:
                with torch.no_grad():
                    model[0].weight *= 1.5
    first = 3 * model[0].weight.numel() // 4
    # Nothing to keep at first; all copies of both layers; then not those of the changed one.
    assert bytes_kept == [0, ff + bp, 2 * (ff + bp) - first]
    assert report.to_json()["devices"]["golden"]["bytes_kept"] == bytes_kept[-1]
    assert f"{bytes_kept[-1]:,} kept" in str(report)


def test_strided_convolutions_keep_a_part_for_each_phase():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1)
    sat.sparsify_(conv, "bdwp", "2:8")
    x = torch.randn(2, 8, 7, 7, requires_grad=True)
    with sat.offload("golden") as report:
        conv(x).sum().backward()
        assert sum(d.bytes_kept for d in report.devices.values()) == 0
        once = x.grad.clone()
        conv(x).sum().backward()
    # FF's copy and BP's, whose nine positions are spread over four phases.
    assert report.devices["golden"].bytes_kept == 2 * (3 * conv.weight.numel() // 4)
    assert torch.equal(x.grad, 2 * once)


@pytest.mark.xdist_group("4x4")
class TestRtl:
    """The simulated hardware finds in its own memory what is not sent."""

    def test_a_resident_operand_is_read_from_the_devices_memory(self):
        rng = np.random.default_rng(0)
        a = rng.standard_normal((9, 40)).astype(np.float16)
        for w in (B.numpy(), sat.prune(B, "2:8")):
            kept = sat.resident(w)
            left = a[:, :32]
            with sat.device("rtl", array="4x4") as rtl, sat.device("golden") as golden:
                want = golden.matmul(left, w)
                first = rtl.matmul(left, kept)
                assert rtl.last_run.bytes_kept == 0
                # Whatever the host holds now, the device multiplies what it has.
                kept.values.fill(0)
                for rows in (9, 1, 5):
                    got = rtl.matmul(left[:rows], kept, dataflow="ws" if rows == 1 else "os")
                    np.testing.assert_array_equal(got, want[:rows])
                    assert rtl.last_run.cycles == rtl.last_run.predicted_cycles
                    assert rtl.last_run.bytes_kept == kept.nbytes
                np.testing.assert_array_equal(first, want)

    def test_many_operands_share_a_memory_and_the_oldest_is_sent_again(self):
        rng = np.random.default_rng(1)
        operands = [rng.standard_normal((64, 64)).astype(np.float16) for _ in range(6)]
        kept = [sat.resident(b) for b in operands]
        a = rng.standard_normal((8, 64)).astype(np.float16)
        # 8 KiB each: room for four and a program.
        with sat.device("rtl", array="4x4", memory_bytes=12 * BOUNDARY_BYTES) as rtl:
            sent = []
            for number in (0, 1, 2, 3, 0, 1, 4, 0, 5, 2):
                got = rtl.matmul(a, kept[number])
                want = sat.device("golden").matmul(a, operands[number])
                np.testing.assert_array_equal(got, want)
                assert rtl.last_run.cycles == rtl.last_run.predicted_cycles
                sent.append(rtl.last_run.bytes_kept == 0)
            assert sent == [True] * 4 + [False] * 2 + [True, False, True, True]
            # A larger product makes the memory grow; everything is sent anew.
            wide = rng.standard_normal((600, 64)).astype(np.float16)
            np.testing.assert_array_equal(
                rtl.matmul(wide, kept[0]), sat.device("golden").matmul(wide, operands[0])
            )
            assert rtl.last_run.bytes_kept == 0
            rtl.matmul(wide, kept[0])
            assert rtl.last_run.bytes_kept == kept[0].nbytes

    def test_after_a_failed_program_the_operand_is_sent_again(self):
        kept = sat.resident(B)
        with sat.device("rtl", array="4x4") as rtl:
            want = rtl.matmul(A, kept)
            rtl._device.fail("read")
            with pytest.raises(sat.DeviceError, match="stopped with"):
                rtl.matmul(A, kept)
            rtl._device.soft_reset()
            assert torch.equal(rtl.matmul(A, kept), want)

    def test_training_leaves_weights_and_copies_on_the_device(self):
        """FF reads the copies that WUVE and SORE wrote; the host sends each weight once."""
        from sat.data import load_data
        from sat.training.trainer import Trainer

        with sat.device("rtl", array="4x4") as rtl:
            checked = StagedDevice(rtl, compare=True)
            trainer = Trainer("mlp", load_data("digits"), device=checked, batch=16, epochs=1)
            trainer.fit(2)
            assert (checked.mismatches, checked.mispredicted) == (0, 0)
            ff = [entry.run for entry in checked.runs if entry.stages == ("ff",)]
            updates = [entry.run for entry in checked.runs if entry.stages == ("update",)]
            layers = len(ff) // 2
            weights = [4 * w.numel() for w in trainer.model.parameters() if w.ndim == 2]
            assert [run.bytes_kept for run in ff] == [0] * layers + weights
            # The momenta are zeros of the host at first, and then the device's own.
            assert sorted(run.bytes_kept for run in updates) == sorted(
                [*weights, *(2 * size for size in weights)]
            )
            # One bit of the copies in device memory is wrong: the next FF shows it.
            module = trainer.model.fc2
            block = rtl._residents.find(module).block
            rtl._device.memory[block.start : block.stop] ^= 1
            trainer.fit(1)
            assert checked.mismatches > 0
            # The host's own change is seen, and everything is right again.
            checked.mismatches = 0
            with torch.no_grad():
                for weight in trainer.model.parameters():
                    weight.mul_(0.5)
            trainer.fit(1)
            assert checked.mismatches == 0
