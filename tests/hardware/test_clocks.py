from __future__ import annotations

from pathlib import Path

from autocomp.hardware.clocks import clock_words


def core(folder: Path, number: int, governor: str, least_khz: int, most_khz: int) -> None:
    policy = folder / f"cpu{number}" / "cpufreq"
    policy.mkdir(parents=True)
    (policy / "scaling_governor").write_text(f"{governor}\n")
    (policy / "scaling_min_freq").write_text(f"{least_khz}\n")
    (policy / "scaling_max_freq").write_text(f"{most_khz}\n")


def test_governor_and_range_of_all_cores(tmp_path: Path) -> None:
    core(tmp_path, 0, "powersave", 800_000, 3_900_000)
    core(tmp_path, 10, "performance", 600_000, 2_400_000)
    assert clock_words(tmp_path, tmp_path / "none") == "governor performance, powersave, 600 to 3900 MHz"


def test_a_virtual_machine_says_what_it_runs_at(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\ncpu MHz\t\t: 3693.060\nprocessor : 1\ncpu MHz\t\t: 3700.0\n")
    assert clock_words(tmp_path, cpuinfo) == "governor not told by this system; 3693 MHz at the time"


def test_nothing_is_made_up(tmp_path: Path) -> None:
    assert clock_words(tmp_path, tmp_path / "none") == "not told by this system"
