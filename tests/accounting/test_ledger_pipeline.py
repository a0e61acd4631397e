"""What workers see of a ledger, through real pipelines in this process and with a worker of another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from beam_dp.accounting import Grant, Ledger, Plan, require_grant
from beam_dp.accounting.pipeline import LedgerPipeline, ledger_of
from beam_dp.errors import ArgumentError, GrantError, LedgerSealedError
from beam_dp.guarantees import MetricGuarantee
from pipelines.workers import late_workers_stop

DIGEST = "ab" * 32
ONE_PROCESS = ["--runner=FnApiRunner"]
WORKER_PROCESS = [*ONE_PROCESS, "--direct_num_workers=1", "--direct_running_mode=multi_processing"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _worker_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Worker processes must find this module and the package as this process does, and must end when a run fails."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with late_workers_stop():
        yield


def _record(ledger: Ledger, label: str, epsilon: float = 1.0) -> Grant:
    return ledger.record(
        label=label,
        mechanism=f"Example(epsilon={epsilon})",
        guarantee=MetricGuarantee(basis="proved", epsilon=epsilon, metric="euclidean", index_digest=DIGEST),
        max_applications=4,
        diameter=2.0,
        fingerprint=f"Example({epsilon})/{DIGEST}/4",
    )


class _Noisy(beam.DoFn):
    """Stands for a mechanism: checks its grant in setup."""

    def __init__(self, grant: object, epsilon: float = 1.0) -> None:
        self._grant = grant
        self._epsilon = epsilon

    def setup(self) -> None:
        require_grant(self._grant).check(f"Example({self._epsilon})/{DIGEST}/4")

    def process(self, element: int) -> Iterator[int]:
        yield element


class _Sink(beam.DoFn):
    """Stands for a sink: emits what it would write as the ledger, and whether it runs elsewhere."""

    def __init__(self, plan: Plan, driver: int) -> None:
        self._plan = plan
        self._driver = driver

    def process(self, _: object) -> Iterator[tuple[str, bool, bool]]:
        written = self._plan.ledger_json()
        labels = ",".join(entry["label"] for entry in written["entries"])
        yield labels, written["sealed"], os.getpid() == self._driver


@pytest.mark.parametrize("flags", [ONE_PROCESS, WORKER_PROCESS], ids=["this process", "another process"])
def test_sink_sees_what_was_recorded_after_it(flags: list[str]) -> None:
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(flags)) as p:
        numbers = p | beam.Create([1, 2, 3]) | "first" >> beam.ParDo(_Noisy(_record(ledger, "first")))
        seen = numbers | beam.Reshuffle() | beam.ParDo(_Sink(ledger.plan(), os.getpid()))
        numbers | "second" >> beam.ParDo(_Noisy(_record(ledger, "second")))
        assert not ledger.sealed
        in_driver = flags is ONE_PROCESS
        assert_that(seen, equal_to([("first,second", True, in_driver)] * 3))
    assert ledger.sealed


@pytest.mark.parametrize(
    ("fault", "flags"),
    [("no grant", ONE_PROCESS), ("other mechanism", ONE_PROCESS), ("other mechanism", WORKER_PROCESS)],
    ids=["no grant-this process", "other mechanism-this process", "other mechanism-another process"],
)
def test_mechanism_without_its_grant_fails_in_setup(flags: list[str], fault: str) -> None:
    ledger = Ledger()
    grant = _record(ledger, "noisy", epsilon=1.0)
    doubtful = _Noisy(None) if fault == "no grant" else _Noisy(grant, epsilon=2.0)
    expected = "no grant" if fault == "no grant" else "noisy would run another mechanism"
    with pytest.raises(Exception, match=expected) as caught, ledger.pipeline(PipelineOptions(flags)) as p:
        _ = p | beam.Create([1]) | beam.ParDo(doubtful)
    assert "GrantError" in f"{type(caught.value).__name__}: {caught.value}"


def test_run_seals_as_with_does() -> None:
    ledger = Ledger()
    p = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    _ = p | beam.Create([1]) | beam.ParDo(_Noisy(_record(ledger, "noisy")))
    p.run().wait_until_finish()
    assert ledger.sealed
    with pytest.raises(LedgerSealedError, match="before the pipeline runs"):
        _record(ledger, "late")


def test_a_failed_construction_seals_nothing() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.pipeline(PipelineOptions(ONE_PROCESS)):
        _ = 1 / 0
    assert not ledger.sealed


def test_plain_pipeline_runs_with_an_explicit_ledger() -> None:
    ledger = Ledger()
    with beam.Pipeline(options=PipelineOptions(ONE_PROCESS)) as p:
        used = ledger_of(p, ledger)
        numbers = p | beam.Create([1, 2]) | beam.ParDo(_Noisy(_record(used, "noisy")))
        assert_that(numbers, equal_to([1, 2]))
    assert used is ledger


def test_ledger_of_takes_the_pipelines_own() -> None:
    ledger = Ledger()
    p = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    numbers = p | beam.Create([1])
    assert isinstance(p, LedgerPipeline)
    assert ledger_of(p) is ledger
    assert ledger_of(numbers) is ledger
    assert ledger_of(numbers, ledger) is ledger


def test_ledger_of_refuses_what_cannot_be_right() -> None:
    plain = beam.Pipeline(options=PipelineOptions(ONE_PROCESS))
    with pytest.raises(GrantError, match=r"with ledger\.pipeline\(options\) as p.*ledger=ledger"):
        ledger_of(plain)
    with pytest.raises(ArgumentError, match="ledger must be a Ledger, not a value of type str"):
        ledger_of(plain, "ledger")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="differs from the pipeline's"):
        ledger_of(Ledger().pipeline(PipelineOptions(ONE_PROCESS)), Ledger())


@pytest.mark.parametrize(
    ("flags", "named"), [(["--runner=Nowhere"], "Nowhere"), (["--runner=DataflowRunner"], "Dataflow|project")]
)
def test_options_that_no_runner_takes_are_a_bad_argument(flags: list[str], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        Ledger().pipeline(PipelineOptions(flags))


def test_the_ledger_itself_needs_no_beam_and_no_slow_import() -> None:
    script = (
        "import sys, types\n"
        "package = types.ModuleType('beam_dp')  # stands in for the public face, which imports everything\n"
        "package.__path__ = ['beam_dp']\n"
        "sys.modules['beam_dp'] = package\n"
        "from beam_dp.accounting import Ledger\n"
        "Ledger().report()\n"
        "print([name for name in ('apache_beam', 'dp_accounting') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
