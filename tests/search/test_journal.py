from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocomp.search.journal import Journal


def study_in(backend: JournalFileBackend | Journal) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(study_name="s", storage=JournalStorage(backend), load_if_exists=True)


def trial_of(study: optuna.Study, value: int) -> optuna.Trial:
    trial = study.ask({f"x{n}": optuna.distributions.IntDistribution(0, 9) for n in range(5)})
    trial.set_user_attr("value", value)
    return trial


def test_what_is_written_together_reads_like_what_is_written_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    journal = Journal(path)
    study = study_in(journal)
    for value in range(3):
        before = len(path.read_text().splitlines())
        with journal.together():
            trial = trial_of(study, value)
            assert study.trials[-1].user_attrs == {"value": value}, "read back before it is in the file"
            assert len(path.read_text().splitlines()) == before
        study.tell(trial, value)
        assert len(path.read_text().splitlines()) >= before + 7
    assert study_in(JournalFileBackend(str(path))).trials == study.trials


def test_after_an_error_the_file_has_what_optuna_has(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study.log")
    study = study_in(journal)

    def fail() -> None:
        with journal.together():
            trial_of(study, 0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    trial_of(study, 1)
    assert study_in(Journal(tmp_path / "study.log")).trials == study.trials


def test_nothing_written_together_is_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study.log")
    study = study_in(journal)
    text = (tmp_path / "study.log").read_text()
    with journal.together():
        assert study.trials == []
    assert (tmp_path / "study.log").read_text() == text
