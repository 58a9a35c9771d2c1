"""Rates of boards and habits of their kernels, fitted together to published latencies, and how far off they are for what was
left out of the fit."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from published import Row
from scipy.optimize import least_squares

from autocomp.hardware.latency import HeldOutError
from autocomp.hardware.roofline import Habits, Rates, Vector, times_us, work

#: Twice as many int8 as fp16 operations, on the tensor cores of Volta and Ampere alike.
INT8_SPEEDUP = 2.0
#: What one measurement may differ by from a good model, and how far a residual may go before it counts for less.
NOISE, OUTLIER = 0.1, 1.5


@dataclass(frozen=True)
class Datasheet:
    """fp16 GMAC/s of the tensor cores, or of the ordinary ones where there are none; 10⁹ MACs of the ordinary ones in fp32;
    GB/s."""

    tensor_gmac_s: float
    plain_gmac_s: float
    bandwidth_gb_s: float
    multiprocessors: int
    tensor_cores: bool


#: Other names of the same board.
SAME = {"Jetson AGX Orin 64GB": "Jetson AGX Orin", "Jetson AGX Orin devkit 32GB": "Jetson AGX Orin"}


@dataclass(frozen=True)
class Setting:
    """A board as one source ran it."""

    board: str
    source: str


def setting_of(row: Row) -> Setting:
    return Setting(SAME.get(row.board, row.board), row.source)


#: Where the fit starts and how far it may go from there: logarithms, and one standard deviation. First the habits, then
#: what boards reach on average: shares of the datasheet's tensor cores and bandwidth, and of its plain cores for depthwise
#: convolutions, and microseconds a kernel.
HABITS = Habits(
    half_outputs=2000,
    half_depth=20,
    weight_bandwidth=1,
    elementwise_bandwidth=1,
    pool_overheads=1,
    copy_overheads=1,
    sharpness=3,
)
HABITS_SPREAD = (1.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.6)
AVERAGE = {"tensor": 0.5, "bandwidth": 0.6, "overhead_us": 8.0, "depthwise": 0.1}
AVERAGE_SPREAD = (1.0, 1.0, 1.5, 1.0)
#: How far a board's tensor cores (and with them its depthwise convolutions), bandwidth and overhead are from the average.
OWN_SPREAD = (0.25, 0.25, 0.4)


@dataclass(frozen=True)
class Fit:
    """Logarithms: of the habits, the average, and three of every setting's own."""

    settings: tuple[Setting, ...]
    sheets: Mapping[str, Datasheet]
    logs: Vector

    @property
    def habits(self) -> Habits:
        return Habits(*(float(value) for value in np.exp(self.logs[: len(HABITS_SPREAD)])))

    def rates(self, setting: Setting, sheet: Datasheet | None = None) -> Rates:
        """Of a setting; or of another board that is like it, by its own datasheet."""
        sheet = self.sheets[setting.board] if sheet is None else sheet
        first, own_first = len(HABITS_SPREAD), len(HABITS_SPREAD) + len(AVERAGE_SPREAD)
        tensor, bandwidth, overhead, depthwise = self.logs[first:own_first]
        own = self.logs[own_first + 3 * self.settings.index(setting) :][:3]
        return Rates(
            overhead_us=math.exp(overhead + own[2]),
            bandwidth_gb_s=sheet.bandwidth_gb_s * math.exp(bandwidth + own[1]),
            tensor_gmac_s=sheet.tensor_gmac_s * math.exp(tensor + own[0]),
            depthwise_gmac_s=sheet.plain_gmac_s * math.exp(depthwise + own[0]),
            int8_speedup=INT8_SPEEDUP if sheet.tensor_cores else None,
            multiprocessors=sheet.multiprocessors,
            channels=8 if sheet.tensor_cores else 2,
        )

    def latency_ms(self, row: Row) -> float:
        rates = self.rates(setting_of(row))
        return float(times_us(work(row.kernels, rates.channels), rates, self.habits).sum()) / 1e3


def fit(rows: Sequence[Row], sheets: Mapping[str, Datasheet], start: Fit | None = None) -> Fit:
    """The most likely numbers, by least squares on the logarithm of the latency, with normal priors around the start."""
    settings = tuple(sorted({setting_of(row) for row in rows} if start is None else start.settings, key=astuple))
    before = np.log([*astuple(HABITS), *AVERAGE.values(), *([1.0] * 3 * len(settings))])
    spread = np.array([*HABITS_SPREAD, *AVERAGE_SPREAD, *(OWN_SPREAD * len(settings))])
    works = [(row, work(row.kernels, 8 if sheets[setting_of(row).board].tensor_cores else 2)) for row in rows]

    def residuals(logs: Vector) -> Vector:
        now = Fit(settings, sheets, logs)
        habits, rates = now.habits, {setting: now.rates(setting) for setting in settings}
        times = [float(times_us(done, rates[setting_of(row)], habits).sum()) / 1e3 for row, done in works]
        off = [math.log(time / row.measured_ms) / NOISE for (row, _), time in zip(works, times, strict=True)]
        return np.concatenate([off, (logs - before) / spread])

    first = before if start is None else start.logs
    found = least_squares(residuals, first, loss="soft_l1", f_scale=OUTLIER, max_nfev=60)
    return Fit(settings, sheets, found.x)


@dataclass(frozen=True)
class LeftOut:
    """A published row; predicted over published latency by a fit without its network, and by one without its family."""

    row: Row
    ratio: float
    without_family: float


def left_out(rows: Sequence[Row], sheets: Mapping[str, Datasheet], all_rows: Fit) -> list[LeftOut]:
    def ratios(group: Callable[[Row], str]) -> dict[int, float]:
        found: dict[int, float] = {}
        for name in sorted({group(row) for row in rows}):
            without = fit([row for row in rows if group(row) != name], sheets, all_rows)
            found |= {id(row): without.latency_ms(row) / row.measured_ms for row in rows if group(row) == name}
            print(f"left out: {name}", file=sys.stderr, flush=True)
        return found

    alone, together = ratios(lambda row: row.network), ratios(lambda row: row.family)
    return [LeftOut(row, alone[id(row)], together[id(row)]) for row in rows]


def pair_errors(found: Sequence[LeftOut]) -> list[tuple[LeftOut, LeftOut, float]]:
    """For every two networks of one family in one setting: how far off the ratio of their latencies is, predicted without
    the family."""
    return [
        (one, two, abs(one.without_family / two.without_family - 1.0))
        for one, two in itertools.combinations(found, 2)
        if setting_of(one.row) == setting_of(two.row)
        and one.row.family == two.row.family
        and one.row.network != two.row.network
    ]


def rms_log(ratios: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(math.log(ratio) ** 2 for ratio in ratios))


def held_out_error(ratios: Sequence[float], note: str) -> HeldOutError:
    """Of predicted over published latencies, each predicted without its network."""
    errors = [abs(ratio - 1.0) for ratio in ratios]
    return HeldOutError(
        mean=round(statistics.fmean(errors), 4),
        median=round(statistics.median(errors), 4),
        within_10=sum(error <= 0.1 for error in errors) / len(errors),
        within_20=sum(error <= 0.2 for error in errors) / len(errors),
        networks=len(errors),
        note=note,
    )
