"""Nets that are trained once: kept, found again, and gone on with after an interruption."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocomp.tasks.trained import Training, structure, trained_net

EPOCHS = 4
STEPS = 3


def make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def batches(_: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(STEPS):
        yield torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * STEPS)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)


TRAINING = Training(make, sgd, one_cycle, batches, STEPS, EPOCHS, seed=3, duration="no time")


def train(folder: Path, training: Training = TRAINING, tell: Callable[[str], None] = lambda _: None) -> nn.Module:
    return trained_net("tiny", training, ({"epochs": training.epochs},), folder, tell)


def interrupted(folder: Path, after: int, training: Training = TRAINING) -> None:
    """A training that is killed once epoch ``after`` is told."""

    def kill(line: str) -> None:
        if f"epoch {after} of" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, training, kill)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return train(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("after", range(1, EPOCHS + 1))
def test_an_interrupted_training_ends_where_the_undisturbed_one_does(
    undisturbed: nn.Module, tmp_path: Path, after: int
) -> None:
    interrupted(tmp_path, after)
    said: list[str] = []
    assert same(train(tmp_path, tell=said.append), undisturbed)
    assert f"tiny: going on after epoch {min(after, EPOCHS - 1)} of {EPOCHS}" in said


@pytest.mark.parametrize(("optimizer", "schedule"), [(adam, one_cycle), (adam, cosine), (sgd, cosine)])
def test_any_optimizer_and_schedule_goes_on(
    tmp_path: Path,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
) -> None:
    training = dataclasses.replace(TRAINING, optimizer=optimizer, schedule=schedule)
    interrupted(tmp_path / "one", 2, training)
    assert same(train(tmp_path / "one", training), train(tmp_path / "other", training))


def test_two_interruptions_are_no_worse_than_one(undisturbed: nn.Module, tmp_path: Path) -> None:
    interrupted(tmp_path, 1)
    interrupted(tmp_path, 3)
    assert same(train(tmp_path), undisturbed)


def test_only_the_net_stays_when_the_training_is_done(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    assert [path.suffix for path in tmp_path.iterdir()] == [".unfinished"]
    train(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def momentum_changed(content: bytes) -> bytes:
    """Loads without complaint: torch does not check the sums in its files."""
    file = io.BytesIO()
    state = torch.load(io.BytesIO(content), weights_only=True)
    for kept in state["optimizer"]["state"].values():
        kept["momentum_buffer"].add_(1.0)
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda old: old[: len(old) // 2], lambda _: b"garbage", momentum_changed]
)
def test_a_damaged_unfinished_training_starts_anew(
    undisturbed: nn.Module, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    interrupted(tmp_path, 2)
    (state,) = tmp_path.iterdir()
    state.write_bytes(damage(state.read_bytes()))
    said: list[str] = []
    assert same(train(tmp_path, tell=said.append), undisturbed)
    assert f"tiny: the unfinished training {state} is damaged; starting anew" in said


def test_an_unfinished_training_of_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    said: list[str] = []
    train(tmp_path, dataclasses.replace(TRAINING, epochs=3), said.append)
    assert not any("going on" in line for line in said)


def test_every_epoch_is_told_with_its_loss(tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path, tell=said.append)
    assert said[0].startswith("tiny: training the net once, no time; kept in")
    assert [line.split(",")[0] for line in said[1:]] == [
        f"tiny: epoch {one} of {EPOCHS}" for one in range(1, EPOCHS + 1)
    ]


def test_within_a_long_epoch_the_batch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocomp.tasks.trained.SILENCE_S", -1.0)
    said: list[str] = []
    train(tmp_path, tell=said.append)
    assert f"tiny: epoch 2 of {EPOCHS}, batch 1 of {STEPS}" in said


def test_the_net_is_in_evaluation_mode_and_the_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    net = train(tmp_path)
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_naming_a_structure_draws_no_weights() -> None:
    before = torch.get_rng_state()
    assert structure(make) == structure(make)
    assert torch.equal(torch.get_rng_state(), before)
    assert structure(make) != structure(lambda: nn.Linear(2, 2))
