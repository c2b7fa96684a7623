"""Devices between threads, processes and copies: in turn, stopped together, told apart."""

import contextlib
import contextvars
import copy
import functools
import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

import sat
from sat.devices import ComparingDevice, FirstDevice, PoolDevice, Run
from sat.devices.staged import StagedDevice
from sat.sim import threads
from sat.sim.golden import sore, stce
from sat.sim.threads import Stopped, check_stop, current_stop, side_by_side

RNG = np.random.default_rng(0)
A, B = (RNG.standard_normal((24, 24)).astype(np.float16) for _ in "ab")


def in_fork(work):
    """Run work in a fork of this process; return what it returned or the error's text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            try:
                answer = work()
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writer, pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        dog = threading.Timer(30, os.kill, (child, signal.SIGKILL))
        dog.start()
        answer = pipe.read()
        dog.cancel()
    os.waitpid(child, 0)
    assert answer, "the child hung"
    return pickle.loads(answer)


# What can be made of devices; each takes the class of the simulated one.
MADE = {
    "golden": lambda rtl: sat.device("golden"),
    "golden, two threads": lambda rtl: sat.device("golden", threads=2),
    "rtl": lambda rtl: rtl(),
    "pool": lambda rtl: PoolDevice([rtl(), rtl(), sat.device("golden")]),
    "pool of pools": lambda rtl: PoolDevice([PoolDevice([rtl(), rtl()]), rtl()]),
    "staged": lambda rtl: StagedDevice(rtl()),
    "comparing": lambda rtl: ComparingDevice(rtl(), dense_twins=True),
    "first": lambda rtl: FirstDevice(rtl(), sat.device("golden"), 5),
}


@pytest.fixture(params=MADE)
def shared(request, busy_rtl):
    with MADE[request.param](busy_rtl) as device:
        yield device


@pytest.fixture
def busy_rtl(fake_rtl):
    """A device that notices when two threads are in it."""

    class Busy(fake_rtl):
        inside = 0

        def _matmul(self, *operands):
            self.inside += 1
            assert self.inside == 1, "two threads in one device"
            time.sleep(0.001)
            done = super()._matmul(*operands)
            self.inside -= 1
            return done

    return Busy


@pytest.mark.parametrize("kind", ["dense", "2:8", "resident"])
def test_threads_compute_one_after_the_other(shared, kind):
    right = {
        "dense": B,
        "2:8": sat.prune(B, "2:8"),
        "resident": sat.devices.resident(sat.prune(B, "2:4")),
    }[kind]
    lefts = [np.roll(A, i, 0)[: 24 - i] for i in range(6)]
    with sat.device("golden") as golden:
        want = [golden.matmul(left, right) for left in lefts]
    faults = []

    def work(index):
        try:
            for _ in range(3):
                got, run = shared.matmul_run(lefts[index], right)
                np.testing.assert_array_equal(got, want[index])
                assert run.macs == want[index].size * (24 if kind == "dense" else want_kept)
        except BaseException as error:
            faults.append(error)

    want_kept = {"dense": 24, "2:8": 6, "resident": 12}[kind]
    together = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert faults == []
    if isinstance(shared, ComparingDevice):
        assert (shared.mismatches, len(shared.runs)) == (0, 18)


def test_a_forked_process_computes_on_its_copy(shared):
    want = shared.matmul(A, B)
    got = in_fork(lambda: shared.matmul(A, B))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(shared.matmul(A, B), want)


def test_a_fork_in_the_middle_of_a_product_is_told_in_the_child(fake_rtl):
    entered, leave = threading.Event(), threading.Event()

    class Slow(fake_rtl):
        def _matmul(self, *operands):
            entered.set()
            assert leave.wait(30)
            return super()._matmul(*operands)

    for made in (lambda: Slow(), lambda: PoolDevice([Slow(), Slow()])):
        entered.clear(), leave.clear()
        with made() as device:
            other = threading.Thread(target=device.matmul, args=(A, B))
            other.start()
            assert entered.wait(30)
            said = in_fork(lambda device=device: device.matmul(A, B))
            assert said.startswith("DeviceError: the device was at work in another thread when")
            assert "make another in the new process" in said
            leave.set()
            other.join()
            assert device.matmul(A, B).shape == (24, 24)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_large_products_of_several_threads_forks_and_thread_numbers_have_one_threads_bits(
    precision,
):
    rng = np.random.default_rng(1)
    operands = [
        tuple(torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in shapes)
        for shapes in (((96, 300), (300, 170)), ((9, 64, 70), (9, 70, 96)))
    ]
    wrong = []

    def products():
        with sat.offload("golden", precision=precision):
            return [torch.matmul(*pair).numpy() for pair in operands]

    def same(made):
        return all(np.array_equal(x, y) for x, y in zip(made, want, strict=True))

    def work(size):
        torch.set_num_threads(size)
        wrong.extend(size for _ in range(10) if not same(products()))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = products()
        for size in (2, 3, 1, 4):
            work(size)
        together = [threading.Thread(target=work, args=(size,)) for size in (1, 2, 3)]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join(60)
        assert not any(thread.is_alive() for thread in together)
        torch.set_num_threads(2)
        assert same(products())
        assert same(in_fork(products))
    finally:
        torch.set_num_threads(before)
    assert wrong == []


def test_workers_of_a_data_loader_may_use_a_device():
    class Products(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return device.matmul(torch.full((4, 4), float(index)).half(), torch.eye(4).half())

    with sat.device("golden*2") as device:
        device.matmul(A, B)
        loader = torch.utils.data.DataLoader(
            Products(), num_workers=2, multiprocessing_context="fork", timeout=60
        )
        assert [batch.mean().item() for batch in loader] == [0, 1, 2, 3]


def test_closing_a_device_ends_what_waits_for_it(fake_rtl):
    entered, leave, said = threading.Event(), threading.Event(), []

    class Slow(fake_rtl):
        def _matmul(self, *operands):
            entered.set()
            assert leave.wait(30)
            return super()._matmul(*operands)

    def work():
        with pytest.raises(sat.DeviceClosedError) as caught:
            for _ in range(2):
                device.matmul(A, B)
        said.append(str(caught.value))

    device = Slow()
    together = [threading.Thread(target=work) for _ in range(3)]
    for thread in together:
        thread.start()
    assert entered.wait(30)
    device.close()
    leave.set()
    for thread in together:
        thread.join()
    assert len(said) == 3 and all(text.startswith("device rtl is closed") for text in said)


@pytest.mark.parametrize("method", ["run_stages", "stages"])
def test_a_closed_device_runs_no_stages(method):
    golden = sat.device("golden")
    device = StagedDevice(golden) if method == "stages" else golden
    device.close()
    with pytest.raises(sat.DeviceClosedError, match="device golden is closed"):
        getattr(device, method)(("ff",), None, {}, None)


# ------------------------------------------------------------------------------- Ctrl-C and stops


def interrupted_after(seconds, work):
    """Return how long work went on after a Ctrl-C, in seconds of the processor."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    def send():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    return time.process_time() - sent[0]


@pytest.fixture(scope="module")
def long_operands():
    """Operands of about 10^11 multiply-accumulates: many seconds."""
    a = np.ones((1 << 14, 1 << 14), np.float16)
    return a, {"dense": a[:, :1024], "2:8": sat.prune(a[:, :512], "2:8")}


@pytest.mark.parametrize(
    ("spec", "pattern", "count"),
    [("golden", "dense", 1), ("golden", "2:8", 1), ("golden", "dense", 2), ("golden*2", "2:8", 1)],
)
def test_ctrl_c_ends_a_long_golden_product(spec, pattern, count, long_operands):
    a, right = long_operands
    with sat.device(spec, threads=count) as device:
        assert interrupted_after(0.2, lambda: device.matmul(a, right[pattern])) < 1.5
        assert device.matmul(a[:4, :8], a[:8, :4])[0, 0] == 8


def test_the_first_error_stops_the_other_jobs():
    ended = []

    def loop():
        try:
            while True:
                check_stop()
                time.sleep(0.001)
        finally:
            ended.append(1)

    def loop_with_others():
        started.wait(30)
        loop()

    def fail():
        started.wait(30)
        raise ZeroDivisionError("mine")

    def nested():
        side_by_side([loop_with_others, loop_with_others])

    started = threading.Barrier(3)
    with pytest.raises(ZeroDivisionError, match="mine"):
        side_by_side([loop, nested, fail])
    assert len(ended) == 3
    check_stop()


def test_ctrl_c_stops_jobs_at_every_depth():
    ended = []

    def native():
        flag = current_stop().flag
        while not flag.value:
            time.sleep(0.001)
        ended.append(1)
        raise Stopped

    def deep(level):
        side_by_side([functools.partial(deep, level - 1) if level else native] * 2)

    assert interrupted_after(0.3, lambda: side_by_side([native, lambda: deep(2)])) < 5
    assert len(ended) == 1 + 8


def test_ctrl_c_between_a_jobs_start_and_its_booking_stops_it(monkeypatch):
    ended = []

    class Interrupted(threads.ThreadPoolExecutor):
        def submit(self, *job):
            super().submit(*job)
            raise KeyboardInterrupt

    def loop():
        while not current_stop().flag.value:
            time.sleep(0.001)
        ended.append(1)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side([loop])
    assert ended == [1]


def test_jobs_give_results_in_order_and_share_the_callers_context():
    assert side_by_side([]) == []
    assert side_by_side([functools.partial(pow, 2, i) for i in range(20)], 3) == [
        2**i for i in range(20)
    ]
    with sat.device("golden") as device, sat.use_device(device):
        assert side_by_side([sat.devices.current_device] * 2) == [device, device]


def stopped(work):
    """Do work that was asked to stop before it began."""
    stop = threads.Stop()
    stop.ask()
    assert threads.Stop(stop).flag.value == 1
    threads._stop.set(stop)
    return work()


def test_every_kernel_of_the_golden_model_looks_for_a_stop():
    a = np.ones((8, 8), np.float16)
    few, many = sore.select(a, 1, 2), np.ones((64, 2, 2), np.float16)
    for count in (1, 2):
        products = [
            lambda n=count: stce.fold(a, a, None, None, threads=n),
            lambda n=count: stce.fold(a, *few, None, 1, 2, n),
            lambda n=count: stce.fold(many, many, None, None, threads=n),
        ]
        for product, total in zip(products, (8, 4, 2), strict=True):
            assert (product() == total).all()
            with pytest.raises(Stopped):
                contextvars.copy_context().run(stopped, product)


# ------------------------------------------------------------------------------------- plain data


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(dump(x))}


def dump(x):
    return pickle.dumps(x)


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("spec", ["golden", "golden*2", "golden,golden"])
def test_accounts_are_plain_data(way, spec):
    layer = torch.nn.Linear(16, 16)
    sat.sparsify_(layer, pattern="2:8")
    x = torch.randn(8, 16, requires_grad=True)
    with sat.device(spec, array="4x4") as device:
        with sat.use_device(device), sat.record_products() as log:
            layer(x).sum().backward()
        run = device.last_run
        with sat.offload(device, trace=True) as report:
            torch.ones(8, 8) @ torch.ones(8, 8)
            layer(x).sum().backward()
            torch.linalg.inv(torch.eye(3))
            torch.full((4, 4), 1e9) @ torch.full((4, 4), 1e-9)
    got = way(run)
    assert vars(got).keys() == vars(run).keys() and repr(got) == repr(run)
    assert got.predicted_cycles == run.predicted_cycles > 0
    again = way(log)
    assert [vars(r) | {"run": repr(r.run)} for r in again] == [
        vars(r) | {"run": repr(r.run)} for r in log
    ]
    assert (again.macs, again.cycles) == (log.macs, log.cycles)
    assert way(report).to_json(cycles=True) == report.to_json(cycles=True)
    assert str(way(report)) == str(report)


def test_a_comparison_and_a_staged_log_are_plain_data(fake_rtl):
    with fake_rtl(wrong_product=0) as device:
        checked = ComparingDevice(device)
        checked.matmul(A, B)
    mismatch, runs = pickle.loads(dump((checked.first, checked.runs)))
    assert mismatch == checked.first
    assert repr(runs) == repr(checked.runs)


def test_a_prediction_travels_unasked_for():
    """What a worker sends back costs nothing that nobody asked for."""
    with sat.device("golden") as device:
        device.matmul(A, B)
    data = dump(device.last_run)
    assert callable(pickle.loads(data)._predicted_cycles)
    assert isinstance(pickle.loads(data), Run) and len(data) < 4000
    assert sys.getrefcount(device) < 20  # no account holds the device
